"""The page's style sheet: light, dark, phone and print; the colors are Okabe and Ito's, safe for the color-blind."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1d21; --soft: #59616b; --line: #d8dce1; --tint: #f4f6f8;
  --shade: #0003;
  --student: #0072b2; --teacher: #c85200; --control: #b1568c; --baseline: #5f6770; --good: #00694d; --mark: #e3f4ee; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e9ecef; --soft: #a3abb5; --line: #363c43; --tint: #1d2226;
    --student: #56b4e9; --teacher: #f0a04b; --control: #e29cc4; --baseline: #a3abb5;
    --good: #4fd0a5; --shade: #000c; --mark: #17352c; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #f4f4f4;
  --student: #0072b2; --teacher: #c85200; --control: #b1568c; --baseline: #5f6770; --good: #00694d; --mark: #e3f4ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  overflow-wrap: anywhere; }
.over, .about, figcaption, .legend, .ranks, .score, .document, output { color: var(--soft); font-size: .875rem; }
.over { margin: 0 0 .5rem; }
h1 { font-size: clamp(1.15rem, 1rem + .9vw, 1.5rem); line-height: 1.35; font-weight: 600; margin: 0 0 1rem;
  max-width: 54rem; text-wrap: pretty; }
header ul { max-width: 60rem; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
h4 { font-size: .9rem; margin: 0 0 .5rem; }
ul { padding-left: 1.2rem; margin: 0 0 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0 0; font-size: .9rem; }
a { color: var(--student); }
section { margin-top: 2.5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.notes { background: var(--tint); border: 0; border-left: 4px solid var(--teacher); padding: 1rem 1.25rem .25rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 .5rem; }
.icon { vertical-align: -.1em; }
/* A shadow at the edge behind which a table goes on; the covers of the first two lines move with the table. */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 2.5rem 100% local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2.5rem 100% local,
  linear-gradient(to right, var(--shade), transparent) left / .8rem 100% scroll,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100% scroll;
  background-repeat: no-repeat; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.scroll table { min-width: 100%; }
th, td { padding: .45rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { vertical-align: bottom; line-height: 1.3; color: var(--soft); font-weight: 600; }
.scroll th:first-child, .scroll td:first-child { padding-left: 0; }
.number { text-align: right; }
td.number { white-space: nowrap; }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 9.5rem; }
.sortable td:not(.number) { min-width: 8rem; overflow-wrap: anywhere; }
tr.student th, tr.student td.number { font-weight: 650; }
.told { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden;
  white-space: nowrap; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
th button:hover { color: var(--ink); text-decoration: underline; }
th button::after { content: "\\2195"; opacity: .4; margin-left: .25em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
:focus-visible { outline: 2px solid var(--student); outline-offset: 2px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20.5rem), 1fr));
  gap: 1.5rem 2.5rem; }
figure { margin: 0; min-width: 0; max-width: 33rem; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums; }
svg .tick, svg .title { fill: var(--soft); font-size: 12px; }
svg .label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.grid { stroke: var(--line); stroke-width: .75; fill: none; opacity: .7; }
.axis { stroke: var(--soft); fill: none; }
.front { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; fill: none; }
.leader { stroke: var(--soft); stroke-width: .75; fill: none; }
.mark { stroke: var(--paper); stroke-width: 1.25; }
.student.mark { fill: var(--student); } .teacher.mark { fill: var(--teacher); }
.control.mark { fill: var(--control); } .baseline.mark { fill: var(--baseline); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--student); }
.line.second { stroke: var(--teacher); stroke-dasharray: 6 3; } .line.faint { stroke-width: 1; opacity: .35; }
.dot { fill: var(--student); } .dot.second { fill: var(--teacher); }
.key::before { content: ""; display: inline-block; width: 1.4em; margin-right: .35em; vertical-align: .25em;
  border-top: 2px solid var(--student); }
.key.second::before { border-top: 2px dashed var(--teacher); }
.empty { align-self: center; }
.line.student { stroke: var(--student); } .line.teacher { stroke: var(--teacher); }
.line.control { stroke: var(--control); } .line.baseline { stroke: var(--baseline); }
.dot.student { fill: var(--student); } .dot.teacher { fill: var(--teacher); }
.dot.control { fill: var(--control); } .dot.baseline { fill: var(--baseline); }
.band { opacity: .2; stroke: none; fill: var(--student); } .band.teacher { fill: var(--teacher); }
.band.control { fill: var(--control); } .band.baseline { fill: var(--baseline); }
.family { stroke: var(--soft); stroke-width: 1.5; fill: none; }
.whisker { display: block; } .interval { stroke: var(--student); stroke-width: 3; }
.figures > div { min-width: 0; } .scroll + .scroll { margin-top: 1.25rem; }
.search { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem .75rem; }
input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--soft); border-radius: 4px;
  padding: .35rem .6rem; flex: 1 1 14rem; max-width: 26rem; min-width: 0; }
.tools { display: flex; gap: .75rem; }
.tools button { font: inherit; font-size: .875rem; color: inherit; background: var(--tint); cursor: pointer;
  border: 1px solid var(--soft); border-radius: 4px; padding: .3rem .7rem; }
.group h3 { margin-top: 1.5rem; }
.whole { white-space: pre-wrap; }
.title { font-weight: 600; }
details { border-bottom: 1px solid var(--line); }
summary { padding: .6rem 0; cursor: pointer; }
.ranks { display: block; padding-left: 1.05rem; }
.ranks.won b { color: var(--good); } .ranks.lost b { color: var(--teacher); }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem 2rem; padding: .25rem 0 .5rem; }
.sides > div { min-width: 0; }
ol { margin: 0; padding-left: 1.6rem; font-size: .9rem; }
li p { margin: 0; }
ol li { padding: .35rem .5rem; }
li.relevant { background: var(--mark); }
.more { border: 0; } .more summary { padding: .1rem 0; font-size: .85em; color: var(--soft); }
.missed ul { list-style: none; margin: 0 0 .5rem; padding: 0; font-size: .9rem; } .missed li { padding: .35rem .5rem; }
.right { font-weight: 650; color: var(--good); }
.score { float: right; }
pre { background: var(--tint); padding: .8rem 1rem; white-space: pre-wrap; margin: 0; }
code, .document { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85em; }
.seconds th { min-width: 0; padding-left: 0; overflow-wrap: break-word; } .seconds { width: 100%; max-width: 36rem; }
.bar { width: 45%; vertical-align: middle; } .bar svg { display: block; width: 100%; height: .6rem; }
.share { fill: var(--student); opacity: .75; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 2.5rem; }
dl { display: grid; grid-template-columns: minmax(6rem, auto) 1fr; gap: .2rem 1rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; }
[hidden] { display: none !important; }
@media (max-width: 64rem) { .sortable td:not(.number) { min-width: 13rem; } }
@media (max-width: 40rem) {
  .sides { grid-template-columns: 1fr; gap: 1rem; }
  .sortable th:first-child { position: sticky; left: 0; background: var(--paper); max-width: 9.5rem; min-width: 7rem; }
}
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .search, .tools, nav, .more:not([open]), th button::after { display: none; content: none; }
  .scroll { overflow: visible; background: none; } table { font-size: 8pt; } th, td { padding: 3pt 4pt; }
  .scroll th, .scroll td { min-width: 0 !important; }
  .figures { grid-template-columns: 1fr 1fr; }
  figure, li, tr, summary, .notes { break-inside: avoid; } .sides, .sides > div { break-before: avoid; }
  h2, h3, h4, summary { break-after: avoid; }
  .scroll th:first-child { min-width: 56pt !important; } ol { font-size: 8.5pt; }
}
"""
