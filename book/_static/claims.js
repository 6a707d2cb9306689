// The page of claims: a filter by verdict and by experiment, and claims that open when a link leads to them.
addEventListener("DOMContentLoaded", () => {
  const claims = [...document.querySelectorAll("details.claim")];
  const place = document.getElementById("claim-filter");
  const has = (claim, kind) => [...claim.classList].find((name) => name.startsWith(`${kind}-`))?.slice(kind.length + 1);
  const names = { "gen-3": "abstract", gmm: "mixture", vae: "continuous model", air: "scenes", gen: "every model" };
  const chosen = {};

  const count = document.createElement("output");
  function filter() {
    let shown = 0;
    for (const claim of claims) {
      claim.hidden = Object.entries(chosen).some(([kind, value]) => value && has(claim, kind) !== value);
      shown += !claim.hidden;
    }
    count.textContent = `${shown} of ${claims.length} shown`;
  }

  for (const [kind, words] of [["verdict", "Verdict"], ["about", "About"]]) {
    const label = document.createElement("label"), select = document.createElement("select");
    select.append(new Option("all", ""));
    for (const value of new Set(claims.map((claim) => has(claim, kind)))) {
      select.append(new Option(names[value] ?? value.replaceAll("-", " "), value));
    }
    select.addEventListener("change", () => {
      chosen[kind] = select.value;
      filter();
    });
    label.append(`${words} `, select);
    place.append(label);
  }
  place.append(count);
  filter();

  function open() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const claim = target?.closest("details.claim") ?? target?.querySelector("details.claim");
    if (!claim) return;
    claim.open = true;
    claim.scrollIntoView();
  }
  addEventListener("hashchange", open);
  open();
});
