"""The paper's checkable statements as numbers: effects with intervals, verdicts by rule, computed reasons.

An effect is signed so that *positive* agrees with the paper: a difference of medians over replicates (of
means where there are only a few), most of them of logarithms where ratios matter.
"""

from rwslib.report.claims.air import air_claims, without_failures
from rwslib.report.claims.effects import QUANTITIES, Effect, Evidence, Quantity, in_words, listed
from rwslib.report.claims.export import CARRIED, export, finding, show_claims, verdicts_table
from rwslib.report.claims.general import SUMS, general_claims
from rwslib.report.claims.gmm import gmm_claims
from rwslib.report.claims.reasons import Reason
from rwslib.report.claims.rules import VERDICTS, Claim, Rule, judge, verdict
from rwslib.report.claims.vae import vae_claims
from rwslib.report.claims.words import headline, lead, more_defence, more_particles

__all__ = [
    "CARRIED",
    "QUANTITIES",
    "SUMS",
    "VERDICTS",
    "Claim",
    "Effect",
    "Evidence",
    "Quantity",
    "Reason",
    "Rule",
    "air_claims",
    "export",
    "finding",
    "general_claims",
    "gmm_claims",
    "headline",
    "in_words",
    "judge",
    "lead",
    "listed",
    "more_defence",
    "more_particles",
    "show_claims",
    "vae_claims",
    "verdict",
    "verdicts_table",
    "without_failures",
]
