"""The paper's checkable statements as numbers: effects with bootstrap intervals, verdicts by rule.

An effect is signed so that *positive* agrees with the paper: a difference of medians over replicates (of
means where there are only a few), or a logarithm of a ratio.  A claim whose methods or particle numbers
were not run is "not run".
"""

from rwslib.claims.air import air_claims, without_failures
from rwslib.claims.common import VERDICTS, Claim, claims_table, export, in_words, listed, side, sum_up
from rwslib.claims.general import general_claims
from rwslib.claims.gmm import gmm_claims
from rwslib.claims.vae import vae_claims
from rwslib.claims.words import lead, more_defence, more_particles

__all__ = [
    "VERDICTS",
    "Claim",
    "air_claims",
    "claims_table",
    "export",
    "general_claims",
    "gmm_claims",
    "in_words",
    "lead",
    "listed",
    "more_defence",
    "more_particles",
    "side",
    "sum_up",
    "vae_claims",
    "without_failures",
]
