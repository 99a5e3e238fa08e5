"""The result of the checks as one self-contained HTML page."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ dataset }}: data checks</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem }
  h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin-top: 2.2rem }
  p.verdict { font-size: 1.1rem; margin: .4rem 0 1.2rem }
  table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #dde3e9; vertical-align: top }
  td.n { text-align: right; font-variant-numeric: tabular-nums }
  .passed { color: #00694b } .failed { color: #b03a00; font-weight: 600 } .warning { color: #8a6100; font-weight: 600 }
  code { font-size: .85rem; word-break: break-all } .muted { color: #5d6b79 }
  details { margin: .1rem 0 } summary { cursor: pointer }
</style></head><body>
<h1>Data checks: {{ dataset }}</h1>
<p class="verdict">
{% if not rejected %}<span class="passed">✓ Passed:</span> {{ images }} images can be used.
{% elif on_fail == "quarantine" %}<span class="warning">⚠ Quarantined {{ rejected|length }} of {{ images }} images;</span> the rest go on.
{% else %}<span class="failed">✗ Failed:</span> {{ rejected|length }} of {{ images }} images can't be used.{% endif %}
</p>
<table>
{% for name, value in facts.items() %}<tr><td class="muted">{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
<h2>Expectations</h2>
<table><tr><th>result</th><th>expectation</th><th>offending</th></tr>
{% for f in findings %}
<tr><td>{% if f.success %}<span class="passed">✓ passed</span>{% elif f.severity == "warning" %}<span class="warning">⚠ warning</span>{% else %}<span class="failed">✗ failed</span>{% endif %}</td>
<td>{{ f.title }}{% if f.offenders and f.severity == "warning" %}<details><summary class="muted">which</summary>{% for o in f.offenders %}<code>{{ o }}</code><br>{% endfor %}</details>{% endif %}</td>
<td class="n">{{ f.offenders|length or "" }}</td></tr>
{% endfor %}
</table>
{% if rejected %}
<h2>Images that can't be used</h2>
<table><tr><th>file</th><th>reason</th></tr>
{% for path, reason in rejected.items() %}<tr><td><code>{{ path }}</code></td><td>{{ reason }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if classes %}
<h2>Classes</h2>
<table><tr><th>class</th><th class="n">images</th></tr>
{% for name, count in classes.items() %}<tr><td>{{ name }}</td><td class="n">{{ count }}</td></tr>
{% endfor %}
</table>
{% endif %}
</body></html>
""")


def validation_page(**result: Any) -> str:
    """The page as text; `result` holds what validation.json holds, and `facts` and `classes`."""
    return _PAGE.render(**result)
