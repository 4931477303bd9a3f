"""How the report looks, on light and dark screens, on phones, and on paper."""

from __future__ import annotations

from typing import Final

_LIGHT: Final = (
    "--paper:#fcfcfa; --panel:#ffffff; --ink:#24292e; --muted:#5f666d; --grid:#dddfe2; "
    "--first:#1f6f8b; --second:#c0562f; --third:#8a8f1f; --good:#2b7a3d; --bad:#b3312a;"
)
_DARK: Final = (
    "--paper:#15181b; --panel:#1c2024; --ink:#e6e8ea; --muted:#9aa3ab; --grid:#343a40; "
    "--first:#58b4d4; --second:#e58a63; --third:#c3c94f; --good:#6fc985; --bad:#f08a83;"
)
_COLOURS: Final = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
@media print {{ :root {{ color-scheme: light; {_LIGHT} --paper: #ffffff; }} }}
"""
STYLE: Final = (
    _COLOURS
    + """* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
h1 { font-size: 2.2rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h1 small { font-size: 1rem; font-weight: 400; color: var(--muted); }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .9rem; padding-top: 1rem; border-top: 1px solid var(--grid); }
h3 { font-size: .8rem; margin: 0 0 .4rem; color: var(--muted); text-transform: uppercase;
  letter-spacing: .06em; }
p { margin: 0 0 .8rem; }
code, pre { font: .875em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { margin: 0; padding: .8rem 1rem; background: var(--panel); border: 1px solid var(--grid);
  border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; }
.kind { margin: 0 0 .2rem; color: var(--first); font-weight: 600; letter-spacing: .04em; }
.state { display: inline-block; vertical-align: .35em; padding: .1em .7em; border-radius: 1em;
  font-size: .85rem; font-weight: 600; border: 1px solid currentColor; color: var(--muted); }
.state.finished { color: var(--good); }
.state.running { color: var(--first); }
.state.failed { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .9rem;
  margin-top: 1.6rem; }
.tiles div { padding: .9rem 1.1rem; background: var(--panel); border: 1px solid var(--grid);
  border-radius: 10px; }
.tiles p { margin: 0; font-size: .85rem; line-height: 1.4; color: var(--muted); }
.tiles strong { display: block; font-size: 1.75rem; line-height: 1.35; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: 1.6rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
figcaption { margin-top: .4rem; font-size: .85rem; line-height: 1.4; color: var(--muted); }
.setting { display: grid; gap: 1.6rem 2.4rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
dl { display: grid; gap: .2rem 1.2rem; grid-template-columns: max-content minmax(0, 1fr); margin: 0 0 1rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .85rem; }
th, td { padding: .4rem .65rem; border-bottom: 1px solid var(--grid); white-space: nowrap;
  vertical-align: top; }
th.n, td.n { text-align: right; }
td.text { white-space: normal; min-width: 16rem; }
tr > :first-child { padding-left: 0; }
tr > :last-child { padding-right: 0; }
details { margin-top: 1.4rem; }
summary { cursor: pointer; color: var(--first); font-weight: 600; margin-bottom: .6rem; }
footer { margin-top: 2.6rem; padding-top: 1rem; border-top: 1px solid var(--grid); color: var(--muted);
  font-size: .85rem; }
@media (max-width: 30rem) {
  main { padding: 1.5rem 1rem 2rem; }
  h1 { font-size: 1.8rem; }
  .proof { grid-template-columns: minmax(0, 1fr); }
  .proof dd { margin-bottom: .6rem; }
}
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  tr, .tiles div, section:last-of-type { break-inside: avoid; }
  .plots { grid-template-columns: 1fr 1fr; }
  .setting { grid-template-columns: repeat(3, auto); }
  th, td { padding-right: .5rem; font-size: 8.5pt; }
}
"""
)
