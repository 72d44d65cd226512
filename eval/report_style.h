// The style sheet and the script of reports (report_page.h). Colours have a contrast of 4.5 to 1 at least in both schemes, and
// none of them alone says anything.
#pragma once

static constexpr const char* REPORT_STYLE = R"css(<style>
:root{--ink:#1b1f24;--paper:#fff;--soft:#555d66;--rule:#d4d9df;--well:#f5f7f9;--link:#0a58a8;--up:#9ecbff;--up1:#d6e9ff;--down:#ffc39a;--down1:#ffe7d6;--c0:#0072B2;--c1:#D55E00}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--paper:#181818;--soft:#b0b6bd;--rule:#3c4046;--well:#222427;--link:#7cb8ff;--up:#1d4f80;--up1:#20354c;--down:#7a3d12;--down1:#46301f;--c0:#56B4E9;--c1:#FF8C3B}}
*{box-sizing:border-box}
html{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:0 clamp(.75rem,3vw,2rem) 2rem;max-width:84rem}
h1{font-size:1.6rem;margin:1.5rem 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .75rem;padding-top:.5rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.75rem 0 .5rem}
h4{font-size:.95rem;margin:0 0 .25rem}
p{margin:.5rem 0;max-width:70ch}
header p,figcaption,.soft{color:var(--soft)}
a{color:var(--link)}
code{overflow-wrap:anywhere}
th code{white-space:nowrap}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-99rem}
.skip:focus{position:static;display:inline-block;padding:.5rem}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;margin:.75rem 0;list-style:none}
nav a{display:inline-block;padding:.3rem 0}
main:focus{outline:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr));gap:.75rem;margin:1rem 0;padding:0;list-style:none}
.tiles li{background:var(--well);border:1px solid var(--rule);border-radius:6px;padding:.6rem .8rem}
.tiles b{display:block;font-size:1.35rem;line-height:1.3;overflow-wrap:anywhere}
.tiles small{font-size:.9rem;font-weight:400;white-space:nowrap;display:block}
.tiles span{color:var(--soft);font-size:.9rem;display:block}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem}
figure{margin:0;min-width:0}
.curve{border:1px solid var(--rule);border-radius:6px;padding:.6rem .7rem}
.curve svg{display:block;width:100%;height:auto;touch-action:pan-y}
.curve .here{stroke:var(--ink);stroke-dasharray:3 3}
.read{min-height:1.4em;margin:0;font-size:.85rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.sample .read:empty{min-height:0}
figcaption{font-size:.85rem}
details{margin:.4rem 0}
summary{cursor:pointer;padding:.2rem 0}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:.2rem 0;white-space:nowrap}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
th{font-weight:600}
tr>:first-child{text-align:left}
.numbers{max-height:18rem;overflow:auto}
.wide td{white-space:nowrap}
.words th{text-align:left}
.words td{white-space:normal;text-align:left;overflow-wrap:anywhere;min-width:8rem;max-width:40rem}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;contain:paint;font:.85rem/1.7 ui-monospace,monospace;background:var(--well);border:1px solid var(--rule);border-radius:6px;padding:.5rem .7rem;margin:.4rem 0;max-width:none}
.sample{border-left:4px solid var(--rule);padding-left:.8rem;margin:1rem 0}
.sample.plus{border-left-color:var(--c0)}
.sample.minus{border-left:4px double var(--c1)}
.t{text-decoration:none}
.p1{text-decoration:underline dotted}.p2{text-decoration:underline dashed}.p3{text-decoration:underline solid 2px}.p4{text-decoration:underline wavy 2px}
.t,.key span{text-decoration-color:var(--ink);text-underline-offset:3px}
.u1{background:var(--up1)}.u2{background:var(--up)}
.d1{background:var(--down1)}.d2{background:var(--down)}
.t.at{outline:2px solid var(--link)}
.warning{border-left:4px solid var(--c1);padding-left:.8rem}
footer{margin-top:3rem;border-top:1px solid var(--rule);color:var(--soft)}
@media print{html{background:#fff;font-size:11pt}nav,.skip,.read{display:none}.curve,.sample,.tiles li{break-inside:avoid}.curves{grid-template-columns:1fr 1fr}.text{contain:none}a{color:inherit}}
</style>
)css";

// Numbers under the pointer and the arrow keys: of a curve those of its table, of a sample those in the titles of its tokens.
// Without it the page lacks nothing else
static constexpr const char* REPORT_SCRIPT = R"js(<script>
'use strict';
for (const f of document.querySelectorAll('figure.curve')) {
  const svg = f.querySelector('svg'), read = f.querySelector('.read'), ends = svg.dataset.x;
  const head = [...f.querySelectorAll('thead th')].map(c => c.textContent);
  const rows = [...f.querySelectorAll('tbody tr')].map(r => [...r.children].map(c => c.textContent));
  if (!ends || !rows.length) continue;
  const [p0, p1, v0, v1] = ends.split(' ').map(Number);
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  line.setAttribute('class', 'here');
  svg.append(line);
  let at = -1;
  const show = i => {
    at = Math.max(0, Math.min(rows.length - 1, i));
    const x = p0 + (p1 - p0) * (Number(rows[at][0]) - v0) / (v1 - v0), h = svg.viewBox.baseVal.height;
    line.setAttribute('d', `M${x.toFixed(1)} 14V${h - 48}`);
    read.textContent = rows[at].map((c, k) => c && `${head[k]} ${c}`).filter(c => c).join(' \u00b7 ');
  };
  const clear = () => { at = -1; line.removeAttribute('d'); read.textContent = ''; };
  svg.addEventListener('pointermove', e => {
    const box = svg.getBoundingClientRect();
    const v = v0 + ((e.clientX - box.left) * svg.viewBox.baseVal.width / box.width - p0) / (p1 - p0) * (v1 - v0);
    let best = 0;
    rows.forEach((r, i) => { if (Math.abs(r[0] - v) < Math.abs(rows[best][0] - v)) best = i; });
    show(best);
  });
  svg.addEventListener('pointerleave', clear);
  f.addEventListener('keydown', e => {
    if (e.target !== f) return;
    const to = {ArrowRight: at + 1, ArrowLeft: at < 0 ? rows.length - 1 : at - 1, Home: 0, End: rows.length - 1}[e.key];
    if (e.key === 'Escape') clear();
    else if (to !== undefined) { show(to); e.preventDefault(); }
  });
}
for (const b of document.querySelectorAll('.text[tabindex]')) {
  const tokens = [...b.querySelectorAll('.t')], read = b.parentNode.querySelector('.read');
  let at = -1;
  const show = i => {
    if (tokens[at]) tokens[at].classList.remove('at');
    at = Math.max(0, Math.min(tokens.length - 1, i));
    tokens[at].classList.add('at');
    read.textContent = `token ${at + 1} of ${tokens.length} shown: ${JSON.stringify(tokens[at].textContent)} \u00b7 ${tokens[at].title}`;
  };
  if (!tokens.length || !read) continue;
  b.addEventListener('pointerover', e => { const i = tokens.indexOf(e.target); if (i >= 0) show(i); });
  b.addEventListener('keydown', e => {
    const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1}[e.key];
    if (to !== undefined) { show(to); e.preventDefault(); }
  });
}
</script>
)js";
