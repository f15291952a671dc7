"""The report's style sheet: one column, light or dark as the reader's system says, narrow screens and paper too."""

LIGHT = {
    "page": "#fbfbfa",
    "panel": "#ffffff",
    "text": "#1c1e21",
    "muted": "#565b63",
    "line": "#d9dbde",
    "grid": "#e9eaec",
    "accent": "#0b5cad",
    "series-1": "#0b5cad",
    "series-2": "#b3470a",
    "series-3": "#1c7a4a",
    "bar": "#0b5cad",
    "bar-soft": "#a9cdf0",
}
"""Colours by daylight."""

DARK = {
    "page": "#15171a",
    "panel": "#1d2024",
    "text": "#e9eaec",
    "muted": "#a9afb8",
    "line": "#383d44",
    "grid": "#2a2e34",
    "accent": "#7db8f5",
    "series-1": "#7db8f5",
    "series-2": "#f2a263",
    "series-3": "#6fd09e",
    "bar": "#5aa2ea",
    "bar-soft": "#2b4a6b",
}
"""Colours at night."""

GROUND_TRUTH = "#22e6ff"
"""Boxes of objects that a proposal covers; drawn over a dark edge, so it shows on any picture."""

MISSED = "#ff5ea8"
"""Boxes of objects that no proposal covers; they are dashed as well, for those who cannot tell the colours apart."""

RAMP = ("#6a2ad1", "#c43c92", "#f0704f", "#fcb43a", "#fdf65a")
"""Colours of proposals from score 0 to score 1, evenly spaced."""


def _variables(colors: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colors.items())


def style_sheet() -> str:
    """The CSS text of the whole page."""
    return (
        f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
        f".ramp{{background:linear-gradient(90deg,{','.join(RAMP)})}}\n"
        f".truth{{--key:{GROUND_TRUTH}}}.missed{{--key:{MISSED}}}\n" + _RULES
    )


_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:clamp(1.6rem,1.2rem + 1.6vw,2.2rem);line-height:1.2;margin:0 0 .5rem;
letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.25rem;line-height:1.3;margin:3rem 0 .75rem;letter-spacing:-.01em}
p{margin:.5rem 0;max-width:44rem}
.muted,figcaption,caption{color:var(--muted);font-size:.875rem;line-height:1.5}
.headlines{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:1px;margin:1.75rem 0 0;padding:0;
background:var(--line);border:1px solid var(--line);border-radius:.6rem;overflow:hidden}
.headlines>div{background:var(--panel);padding:1rem 1.1rem}
.headlines dt{color:var(--muted);font-size:.875rem}
.headlines dd{margin:0}
.headlines .value{font-size:1.75rem;line-height:1.3;font-weight:600;letter-spacing:-.02em}
.headlines .note{color:var(--muted);font-size:.8125rem;line-height:1.4}
figure{margin:1rem 0 1.75rem;break-inside:avoid}
figcaption{margin-top:.5rem}
.chart{display:block;width:100%;height:auto;overflow:visible}
.chart text{fill:var(--muted);font-size:13px}
.chart .grid{stroke:var(--grid);stroke-width:1}
.chart .axis{stroke:var(--line);stroke-width:1}
.chart path{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .raw{stroke-width:1;opacity:.3}
.chart circle{stroke:var(--page);stroke-width:2}
.s1{stroke:var(--series-1)}.s2{stroke:var(--series-2)}.s3{stroke:var(--series-3)}
.f1{fill:var(--series-1)}.f2{fill:var(--series-2)}.f3{fill:var(--series-3)}
.chart .label{font-weight:600}
.chart .f1.label{fill:var(--series-1)}.chart .f2.label{fill:var(--series-2)}.chart .f3.label{fill:var(--series-3)}
.small-charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:0 2rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.6rem}
.pair svg{display:block;width:100%;height:auto;border-radius:.35rem;background:#000}
.pair rect{fill:none;vector-effect:non-scaling-stroke;stroke-width:1.75}
.pair .edge{stroke:#000;stroke-opacity:.55;stroke-width:3.75}
.pair .dashed{stroke-dasharray:5 3}
.key{display:flex;flex-wrap:wrap;gap:.35rem 1.4rem;padding:0;margin:.75rem 0;list-style:none;
font-size:.875rem;color:var(--muted)}
.key li{display:flex;align-items:center;gap:.5rem}
.swatch{width:1.1rem;height:.8rem;border:2px solid var(--key);outline:1px solid var(--muted);background:#333}
.missed .swatch{border-style:dashed}
.ramp{width:6rem;height:.7rem;border-radius:.2rem;outline:1px solid var(--muted)}
.narrow{display:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9375rem}
caption{text-align:left;padding:0 0 .5rem;caption-side:top}
th,td{padding:.45rem .75rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:baseline}
thead th{color:var(--muted);font-weight:600;font-size:.8125rem;border-bottom-color:var(--muted);vertical-align:bottom}
tbody th{font-weight:500}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
.number{text-align:right;white-space:nowrap}
.bars{width:40%;min-width:7rem}
.bar{position:relative;display:block;height:.8rem}
.bar i{position:absolute;inset:0 auto 0 0;border-radius:.15rem;background:var(--bar-soft)}
.bar i+i{background:var(--bar)}
td.wrap{overflow-wrap:anywhere}
.meaning{display:inline-block;margin-left:1rem;color:var(--muted);font-size:.875rem;font-weight:400}
.recall th:first-child{width:99%}
.recall code{font:inherit;display:inline-block;min-width:9.5rem}
pre{margin:.4rem 0 1.25rem;padding:.8rem 1rem;overflow-x:auto;background:var(--panel);
border:1px solid var(--line);border-radius:.45rem;
font:.875rem/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
@media (max-width:40rem){main{padding:1.5rem 1rem 3rem}.pair{grid-template-columns:1fr}h2{margin-top:2.25rem}
th,td{padding:.45rem .35rem}thead th{font-size:.75rem}.recall code{min-width:0}
.meaning{display:block;margin-left:0;font-size:.8125rem;line-height:1.35}
.narrow{display:block}.wide{display:none}}
@media print{main{max-width:none;padding:0}body{font-size:10pt}h2{break-after:avoid}table{break-inside:avoid}
.meaning{display:block;margin-left:0}pre{white-space:pre-wrap}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
