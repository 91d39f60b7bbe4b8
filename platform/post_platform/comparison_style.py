"""How the comparison page looks, and what little it does: both must stay as they are hashed in its policy."""

COLORS = (  # of the runs A, B, ...: (on light, on dark), told apart also by those who see few colours
    ("#0b62c4", "#6db3ff"),
    ("#c2410c", "#ff9d5c"),
    ("#0f766e", "#4fd1c0"),
    ("#a21caf", "#f08af7"),
    ("#4d6b00", "#b5d94c"),
    ("#b4123f", "#ff8aa5"),
    ("#5b4bd0", "#b3a8ff"),
    ("#6b5b4b", "#d8c6b0"),
)
DASHES = ("none", "6 3", "2 3", "8 3 2 3", "none", "6 3", "2 3", "8 3 2 3")

_LIGHT = "".join(f"--c{n}:{light};" for n, (light, _) in enumerate(COLORS))
_DARK = "".join(f"--c{n}:{dark};" for n, (_, dark) in enumerate(COLORS))
_RUNS = "".join(
    f".c{n}{{background:var(--c{n})}}.f{n}{{fill:var(--c{n})}}"
    f".line.l{n}{{stroke:var(--c{n});stroke-dasharray:{dash}}}.dot.l{n}{{fill:var(--c{n})}}"
    for n, dash in enumerate(DASHES)
)

STYLE = (
    f":root{{color-scheme:light dark;--back:#fff;--card:#f5f6f8;--text:#1c1f24;--soft:#5a6270;--edge:#d9dde3;"
    f"--good:#0a7a3d;--bad:#b3261e;--note:#fff4d6;--chip:#fff;{_LIGHT}}}"
    f"@media(prefers-color-scheme:dark){{:root{{--back:#14171c;--card:#1e232b;--text:#e6e9ee;--soft:#a2abb9;"
    f"--edge:#353c47;--good:#5fd38d;--bad:#ff8a80;--note:#3a321b;--chip:#14171c;{_DARK}}}}}"
    + _RUNS
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3rem}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
header,main{max-width:1400px;margin:0 auto;padding:0 1rem}
header p,.small{color:var(--soft);font-size:.875rem}
h1{font-size:1.5rem;margin:1rem 0 .25rem}
h2{font-size:1.25rem;margin:2.25rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--edge)}
h3{font-size:1rem;margin:1.25rem 0 .4rem}
nav{position:sticky;top:0;z-index:3;display:flex;gap:1rem;overflow-x:auto;padding:.6rem 1rem;background:var(--back);
border-bottom:1px solid var(--edge)}
@media(min-width:1400px){nav{padding-left:calc(50vw - 700px + 1rem)}}
nav a,a{color:var(--c0)}
nav a{text-decoration:none;font-size:.9rem;white-space:nowrap}
.run{display:inline-block;min-width:1.5em;padding:0 .35em;border-radius:.3em;color:var(--chip);text-align:center;
font-size:.85em;line-height:1.5}
.cards{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr))}
.card{background:var(--card);border-radius:.5rem;padding:.75rem 1rem}
.card h3{margin:0 0 .4rem}
dl{display:grid;grid-template-columns:auto 1fr;gap:.1rem .75rem;margin:0;font-size:.875rem}
dt{color:var(--soft)}dd{margin:0}
ul{padding-left:1.2rem}
.notes{background:var(--note);border-radius:.5rem;padding:.6rem 1rem .6rem 2rem}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem;overflow-wrap:normal}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--edge);text-align:right;vertical-align:top;white-space:nowrap}
th:first-child{text-align:left;position:sticky;left:0;background:var(--back);z-index:1;font-weight:400}
thead th{font-weight:600}
tbody th:first-child{max-width:11rem;white-space:normal;overflow-wrap:break-word}
.headline th:first-child,.headline td{font-weight:700}
.scores thead th{cursor:pointer}
.config th{text-align:left}
.config td{white-space:normal;overflow-wrap:anywhere;text-align:left;min-width:6rem}
.change{display:block;font-size:.8rem;font-weight:400;color:var(--soft)}
.change.better{color:var(--good)}.change.worse{color:var(--bad)}
.same{color:var(--good)}.parted{color:var(--bad)}.unknown,.missing{color:var(--soft)}
.bar{display:block;width:5rem;height:6px;margin:.2rem 0 .1rem auto}
.tables{display:grid;gap:0 1.5rem;align-items:start;grid-template-columns:minmax(0,1fr)}
.tables.of2{grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr))}
.tables.of3{grid-template-columns:repeat(auto-fill,minmax(min(100%,540px),1fr))}
.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr))}
figure{margin:0;min-width:0}
figcaption{font-size:.875rem;margin:0 0 .25rem}
svg text{fill:var(--soft);font-size:11px}
.grid{stroke:var(--edge);stroke-width:1}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.panel{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr))}
.panel img{display:block;width:100%;height:auto;min-width:600px;border-radius:.3rem}
input{font:inherit;width:min(100%,20rem);padding:.4rem .6rem;color:inherit;background:var(--card);
border:1px solid var(--edge);border-radius:.4rem}
summary{cursor:pointer;padding:.4rem 0;font-size:.9rem;color:var(--soft)}
[hidden]{display:none}
@media(min-width:700px){.panel img{min-width:0}wbr{display:none}}
@media(max-width:420px){th,td{padding:.3rem .4rem}tbody th:first-child{max-width:7rem}
table{font-size:.85rem}.bar{width:3rem}}
@media print{nav,input{display:none}}
"""
)

# A click on a column's head sorts by the difference (the first run: by its score); the field filters the classes.
SCRIPT = """
"use strict";
const field = document.getElementById("filter");
if (field) field.addEventListener("input", () => {
  const wanted = field.value.toLowerCase();
  for (const row of document.querySelectorAll("#classes tbody tr"))
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  if (wanted) for (const more of document.querySelectorAll("#classes details")) more.open = true;
});
function key(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.order !== undefined ? cell.dataset.order : cell.textContent;
  const number = parseFloat(value);
  return column === 0 ? value : Number.isNaN(number) ? -Infinity : number;
}
for (const head of document.querySelectorAll("table.scores thead th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex, down = head.dataset.down !== "1";
  head.dataset.down = down ? "1" : "0";
  const rows = [...body.rows].sort((a, b) => {
    const x = key(a, column), y = key(b, column);
    return (x < y ? 1 : x > y ? -1 : 0) * ((column === 0) === down ? -1 : 1);
  });
  body.append(...rows);
});
"""
