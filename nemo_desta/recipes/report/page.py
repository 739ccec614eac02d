"""The frame of a report: style, the few lines of script, and a page that asks the network for nothing."""

import base64
import hashlib
from html import escape

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5d6878;--line:#e2e6ec;--hover:#f2f4f8;
--accent:#2f6fde;--part0:#2f6fde;--part1:#e08b2c;--part2:#2ba37c;--part3:#a562c9;--part4:#d65a6f;--part5:#7b8798;
--warn:#c2504f;--user:#e9f0fd;--think:#f6f2e6}
@media (prefers-color-scheme:dark){:root{--bg:#12161d;--card:#1b212b;--ink:#e6eaf0;--soft:#98a4b5;--line:#2d3644;
--hover:#222a36;--accent:#6ea1ff;--part0:#6ea1ff;--part1:#f0a957;--part2:#4cc79e;--part3:#c58ae6;--part4:#f08296;
--part5:#95a2b5;--warn:#f08a86;--user:#233250;--think:#2b281d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:19px;margin:40px 0 12px;letter-spacing:-.005em}
h3{font-size:14px;margin:0 0 10px;color:var(--soft);font-weight:600}
p{margin:0 0 10px}a{color:var(--accent)}
.sub,.note{color:var(--soft)}.note{font-size:13.5px;max-width:78ch}.none{color:var(--soft);font-style:italic}
nav{margin:14px 0 22px;display:flex;flex-wrap:wrap;gap:6px 16px;font-size:14px}nav a{text-decoration:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(46%,180px),1fr));gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:13px 15px}.tile b{display:block;font-size:23px;line-height:1.25;font-weight:650;
font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}.tile.warn b{color:var(--warn)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:14px}
.columns{columns:3 300px;column-gap:14px}.columns.two{columns:2 420px}.columns .card{margin-bottom:14px}
.card{padding:16px 18px;min-width:0;break-inside:avoid}.card.narrow{max-width:560px}
.card+.card{margin-top:14px}.grid .card+.card,.columns .card+.card{margin-top:0}
h3 small,th small{font-weight:400;color:var(--soft);margin-left:6px}h3.next{margin:22px 0 6px}
.examples{font-size:13px;color:var(--soft);overflow-wrap:anywhere;padding-left:18px;margin:8px 0}
details h3{margin:14px 0 4px}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;font-weight:400}
.bars{table-layout:fixed}.bars th{width:36%;padding:3px 10px 3px 0;overflow:hidden;text-overflow:ellipsis;
white-space:nowrap}
.bars .pic{padding:3px 0}.bars .n{width:66px;text-align:right;font-variant-numeric:tabular-nums;padding:3px 0 3px 8px}
.bars .n.share{width:60px;color:var(--soft)}.bars .rest th,.bars .rest td{color:var(--soft)}
.bars svg{display:block;width:100%;height:13px;border-radius:3px}
.bars.long th{width:60%}
.columns:not(.two) .n{width:50px}.columns:not(.two) .n.share{width:62px}
.bar{fill:var(--accent)}.warn.bar{fill:var(--warn)}
.part0{fill:var(--part0);background:var(--part0)}.part1{fill:var(--part1);background:var(--part1)}
.part2{fill:var(--part2);background:var(--part2)}.part3{fill:var(--part3);background:var(--part3)}
.part4{fill:var(--part4);background:var(--part4)}.part5{fill:var(--part5);background:var(--part5)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft);margin-bottom:8px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;vertical-align:-1px}
.histogram{display:block;width:100%;max-width:560px;height:auto}
.histogram text{font-size:11px;fill:var(--soft)}.histogram .strong{fill:var(--ink)}
.histogram .grid{stroke:var(--line)}.histogram .median{stroke:var(--ink);stroke-dasharray:3 3;stroke-width:1.2}
.scroll{overflow-x:auto}
.plain th,.plain td{padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
.plain thead th{color:var(--soft);font-size:13px}.plain .n{text-align:right;font-variant-numeric:tabular-nums}
.plain tbody tr:last-child>*{border-bottom:0}
.plain.wide{min-width:560px}
.row{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0 0 14px;
break-inside:avoid}
.row header{display:flex;flex-wrap:wrap;gap:4px 8px;align-items:center;margin-bottom:10px}
.row header b{overflow-wrap:anywhere;margin-right:4px}
.tag{font-size:12px;border:1px solid var(--line);border-radius:20px;padding:0 9px;color:var(--soft);line-height:20px}
.tag.warn{color:var(--warn);border-color:currentColor}
.sound{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center;font-size:13px;color:var(--soft);margin-bottom:10px}
.sound audio{height:36px;width:min(100%,330px)}.sound code{overflow-wrap:anywhere}
.sound .problem{color:var(--warn);overflow-wrap:anywhere}
.text{white-space:pre-wrap;overflow-wrap:anywhere;padding:9px 13px;border-radius:9px;margin:0 0 8px}
.label{font-size:12px;color:var(--soft);margin:0 0 3px}
.description{border-left:3px solid var(--line);border-radius:0;padding:1px 12px;color:var(--soft)}
.prompt{background:var(--user)}.response{border:1px solid var(--line)}
details{margin:0 0 8px}summary{cursor:pointer;color:var(--soft);font-size:13.5px}
details .text{background:var(--think);margin-top:6px}details.provenance{margin:0}
details pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:12.5px;line-height:1.45;margin:6px 0 0}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}code{font-size:12.5px}
footer{margin-top:44px;color:var(--soft);font-size:13px}
@media (max-width:560px){main{padding:20px 12px 40px}.card,.row{padding:13px 13px}.bars th{width:40%}
.bars .n{width:56px}.bars .n.share{width:54px}h1{font-size:22px}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc}body{font-size:11px}nav,audio{display:none}
main{max-width:none;padding:0}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""

_SCRIPT = """
document.addEventListener("play", e => {
  for (const a of document.querySelectorAll("audio")) if (a !== e.target) a.pause();
}, true);
addEventListener("beforeprint", () => document.querySelectorAll("details.thought").forEach(d => d.open = true));
"""


def page(title: str, body: str) -> str:
    """The whole HTML file. Its content policy allows this style, this script and embedded sound, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; media-src data:; img-src data:"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main><script>{_SCRIPT}</script></body></html>\n"
    )
