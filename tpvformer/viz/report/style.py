"""The style sheet of the report: light or dark as the reader's system is, for phones and larger screens, printable."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f6f3;--card:#fff;--ink:#1c1c1a;--soft:#63625d;--rule:#e2e1db;--grid:#ecebe6;
--t1:#2a6fd0;--t2:#d9622b;--t3:#128a6e;--t4:#8a4fc4;--heat:42,111,208;--bad:#c43025;--tip:rgba(42,111,208,.10)}
@media (prefers-color-scheme:dark){:root{--bg:#141413;--card:#1d1d1b;--ink:#f0efea;--soft:#a3a29a;--rule:#33322f;
--grid:#2a2926;--t1:#5b9bf0;--t2:#f0824e;--t3:#35b893;--t4:#b487ea;--heat:91,155,240;--bad:#ff7a6b;
--tip:rgba(91,155,240,.16)}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1200px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:38px 0 12px}
p{margin:6px 0 12px;max-width:75ch}
.soft,small{color:var(--soft)}
small{font-weight:400;font-size:12.5px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;margin:0;min-width:0}
.tile b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{font-size:12.5px;color:var(--soft);overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:14px}
figcaption{font-weight:600;font-size:14px;margin-bottom:4px}
.keys{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;color:var(--soft)}
.key i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;vertical-align:middle;
background:var(--c)}
.t1{--c:var(--t1)}.t2{--c:var(--t2)}.t3{--c:var(--t3)}.t4{--c:var(--t4)}
svg{display:block;width:100%;height:auto}
.grid{stroke:var(--grid)}.axis{stroke:var(--rule)}
.tick{fill:var(--soft);font-size:11.5px;font-variant-numeric:tabular-nums}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.faint{stroke-width:1.2;opacity:.45}
.dot{fill:var(--c);stroke:var(--card);stroke-width:1.5}
.tip{fill:transparent}.tip:hover{fill:var(--tip)}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:5px 10px;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--soft);font-size:12.5px}
th:first-child,td:first-child,.left{text-align:left}
tr:last-child td{border-bottom:0}
.chip{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px;vertical-align:-1px;
border:1px solid rgba(128,128,128,.55)}
.bar{display:inline-block;width:110px;height:9px;border-radius:5px;background:var(--grid);vertical-align:middle;
overflow:hidden}
.bar i{display:block;height:100%;background:var(--t1)}
.range{position:relative;display:inline-block;width:130px;height:12px;vertical-align:middle}
.range:before{content:"";position:absolute;left:0;right:0;top:5.5px;height:1px;background:var(--rule)}
.range i{position:absolute;top:3px;height:6px;border-radius:3px;background:var(--t1);opacity:.4;min-width:2px}
.range b{position:absolute;top:0;width:3px;height:12px;margin-left:-1.5px;border-radius:2px;background:var(--t1)}
.spark{width:90px;height:20px;display:inline-block;vertical-align:middle}
.matrix{width:auto;margin:0 auto}
.matrix td{padding:0;width:34px;min-width:34px;height:28px;text-align:center;font-size:11px;
border:1px solid var(--card);background:rgba(var(--heat),var(--v))}
.matrix td.hit{outline:1.5px solid var(--soft);outline-offset:-2px}
.matrix td.deep{color:#fff}
.matrix th{font-weight:400;font-size:12px;padding:2px 8px;border:0;text-align:right;color:var(--ink)}
.matrix thead th{vertical-align:bottom;padding:4px 0}
.matrix thead th span{writing-mode:vertical-rl;transform:rotate(180deg);display:inline-block}
.split{display:flex;height:30px;border-radius:7px;overflow:hidden;gap:2px;margin:16px 0 12px}
td.key{color:var(--ink);white-space:normal}i.faint{opacity:.45}
.split i{background:var(--c);min-width:2px}
.frames{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:14px}
.frames figure{padding:10px}.frames img{display:block;width:100%;height:auto;border-radius:6px;cursor:zoom-in}
.frames input{position:absolute;opacity:0}
.frames figure:has(input:checked){grid-column:1/-1;overflow-x:auto}
.frames input:checked+img{cursor:zoom-out;min-width:1000px}
.frames input:focus-visible+img{outline:3px solid var(--t1)}
.frames figcaption{font-weight:400;margin:8px 2px 0;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
pre{margin:0;padding:12px 14px;overflow-x:auto;background:var(--bg);border-radius:7px;
font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
details{margin-top:14px}summary{cursor:pointer;font-weight:600;font-size:14px}
details pre{margin-top:10px}
.bad{color:var(--bad)}
@media (max-width:560px){main{padding:18px 12px 40px}h1{font-size:22px}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:8px}.tick{font-size:15px}.bar{width:60px}.card{padding:12px}th,td{padding:5px 7px}}
@media print{.card{break-inside:avoid}details{display:none}}
"""
