"""docs/grafana.json, made from the table of panels below.

`python -m tests.house.dashboard` writes it; a test holds it equal to what stands here.
"""

import json
from typing import Any, NamedTuple

from .source import ROOT

DASHBOARD = ROOT / "docs" / "grafana.json"

COLUMNS = 24
"""Grafana's grid is so wide."""

SELECTED = '{job="$job",instance=~"$instance"}'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """A panel: what it is called, what it says, its unit by Grafana's name, and (expression, legend) of each line.

    `#` in an expression stands for the selection of job and instance, `##` for the same within braces.
    """

    title: str
    description: str
    unit: str
    targets: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    bad_from: float | None = None
    bad_below: float | None = None


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


def stat(title: str, description: str, unit: str, expression: str, legend: str = "", **more: Any) -> Panel:
    return Panel(title, description, unit, ((expression, legend),), "stat", 4, **more)


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    inner = f"sum by (le) (rate({metric}_bucket#[$__rate_interval]))"
    return tuple((f"histogram_quantile({q}, {inner})", f"{q:.0%}") for q in (0.5, 0.95, 0.99))


SENT = "sum(rate(${prefix}_sent_total#[$__rate_interval]))"
ERRORS = "sum(rate(${prefix}_errors_total#[$__rate_interval]))"

ROWS = (
    Row(
        "Is it well?",
        (
            stat("Ready", "1 while /ready says yes.", "short", "1 - max(letterbook_not_ready#)", bad_below=1),
            stat("Release", "The release that runs.", "string", "letterbook_info#", "{{version}}"),
            stat("Up for", "Since the process began.", "s", "time() - process_start_time_seconds#"),
            stat("Oldest due mail", "How long the mail that has been due longest has waited.", "s",
                 "max(letterbook_queue_age_seconds#)", bad_from=3600),
            stat("Held", "Messages that wait for a person to decide.", "short",
                 'sum(letterbook_messages{state="held",##})', bad_from=1),
            stat("Disk lasts", "Days until the disk is full, at this growth.", "d",
                 "min(letterbook_disk_days_left#)", bad_below=7),
        ),
    ),
    Row(
        "Mail",
        (
            Panel("Mail a second", "Messages taken, sent, ended as an error, and put off by an attempt.", "cps", (
                ("sum(rate(letterbook_accepted_total#[$__rate_interval]))", "accepted"),
                (SENT, "sent"),
                (ERRORS, "errors"),
                ("sum(rate(${prefix}_deferred_total#[$__rate_interval]))", "deferred"),
            ), width=12),
            Panel("What is open", "Messages that are not final, by state; of those that wait, the due.", "short", (
                ('sum by (state) (letterbook_messages{state=~"waiting|in_flight|held",##})', "{{state}}"),
                ("sum(${prefix}_pending_messages#)", "due"),
            ), width=12),
            Panel("Share of errors", "Of the messages that ended, those that ended as an error.", "percentunit", (
                (f"{ERRORS} / ({ERRORS} + {SENT})", "errors"),
            )),
            Panel("Sent a second by account", "Messages whose every recipient a relay took.", "cps", (
                ("sum by (account_id) (rate(${prefix}_sent_total#[$__rate_interval]))", "{{account_id}}"),
            )),
            Panel("Errors a second by account", "Messages that ended as an error.", "cps", (
                ("sum by (account_id) (rate(${prefix}_errors_total#[$__rate_interval]))", "{{account_id}}"),
            )),
            Panel("What keeps the service", "1 while the reason keeps it from taking or sending mail.", "short", (
                ("max by (reason) (letterbook_not_ready#)", "{{reason}}"),
            )),
            Panel("What keeps accounts", "1 while it keeps the account from sending.", "short", (
                ("max by (account_id) (letterbook_relay_unreachable#)", "{{account_id}}: relay unreachable"),
                ("max by (account_id) (letterbook_account_paused#)", "{{account_id}}: paused"),
                ("max by (account_id) (letterbook_account_throttled#)", "{{account_id}}: limit used up"),
            )),
            Panel("Age of the queue", "How long the mail that has been due longest has waited.", "s", (
                ("max(letterbook_queue_age_seconds#)", "oldest"),
            )),
        ),
    ),
    Row(
        "Relays",
        (
            Panel("Time of an attempt", "SMTP transactions, from the envelope to the relay's last word.", "s",
                  quantiles("letterbook_attempt_seconds")),
            Panel("Connections", "Connections to relays, and attempts under way on them.", "short", (
                ("sum(letterbook_connections#)", "connections"), ("sum(letterbook_in_flight#)", "in flight"),
            )),
            Panel("Limits used up", "Times a minute that an account's limit was used up.", "cpm", (
                ("60 * sum by (account_id) (rate(${prefix}_rate_limited_total#[$__rate_interval]))", "{{account_id}}"),
            )),
        ),
    ),
    Row(
        "The log",
        (
            Panel("Time of a commit", "From a fact's stamp until followers have it.", "s",
                  quantiles("letterbook_commit_seconds")),
            Panel("Followers behind", "Facts that the slowest follower has yet to read.", "short", (
                ("max(letterbook_follower_lag_facts#)", "slowest"),
            )),
            Panel("Files", "Sizes of the log's file and of the write-ahead file.", "bytes", (
                ("sum(letterbook_log_bytes#)", "log"), ("sum(letterbook_wal_bytes#)", "write-ahead"),
            )),
            Panel("Growth a day", "Growth of the log a day, as of the last hours.", "bytes", (
                ("sum(letterbook_log_bytes_per_day#)", "a day"),
            )),
        ),
    ),
    Row(
        "The process",
        (
            Panel("Processor", "Seconds of CPU a second; the loop has one core, the writer and readers share others.",
                  "percentunit", (("sum(rate(process_cpu_seconds_total#[$__rate_interval]))", "CPU"),)),
            Panel("Memory", "Resident memory, and of it the bodies of requests under way.", "bytes", (
                ("sum(process_resident_memory_bytes#)", "resident"), ("sum(letterbook_body_bytes#)", "bodies"),
            )),
            Panel("Open files", "Files and sockets, and how many there may be.", "short", (
                ("sum(process_open_fds#)", "open"), ("sum(process_max_fds#)", "limit"),
            )),
            Panel("Lines a minute", "Lines on standard error by level, and those that nobody took.", "cpm", (
                ("60 * sum by (level) (rate(letterbook_log_lines_total#[$__rate_interval]))", "{{level}}"),
                ("60 * sum(rate(letterbook_log_lines_dropped_total#[$__rate_interval]))", "dropped"),
            )),
            Panel("Live streams", "Websockets that follow the log.", "short", (
                ("sum(letterbook_streams#)", "streams"),
            )),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    return {
        "uid": "letterbook",
        "title": "Letterbook",
        "description": "Outbound mail: is it well, what waits and why, relays, the log, the process.",
        "tags": ["letterbook", "mail"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    def query(name: str, expression: str, **more: Any) -> dict[str, Any]:
        asked = {"query": expression, "refId": name}
        return {"name": name, "type": "query", "datasource": SOURCE, "query": asked, "refresh": 2, "sort": 1, **more}

    prefixes = [{"text": name, "value": name, "selected": name == "asyncmail"} for name in ("asyncmail", "gmp")]
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
        query("job", "label_values(letterbook_info, job)", label="Job"),
        query("instance", 'label_values(letterbook_info{job="$job"}, instance)', label="Instance",
              includeAll=True, multi=True, current={"text": "All", "value": "$__all"}),
        {"name": "prefix", "label": "Prefix of the older metrics", "type": "custom", "query": "asyncmail,gmp",
         "options": prefixes, "current": prefixes[0]},
    ]  # fmt: skip


def _panels() -> list[dict[str, Any]]:
    """Every row's title, and its panels from left to right; what has no room begins a new line."""
    found: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        found.append({"id": len(found) + 1, "type": "row", "title": row.title, "gridPos": place, "panels": []})
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            height = 4 if panel.kind == "stat" else 8
            place = {"h": height, "w": panel.width, "x": x, "y": y}
            found.append(_panel(panel, len(found) + 1, place))
            x += panel.width
        y += height
    return found


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    letters = "ABCDEFGH"
    targets = [
        {"refId": letter, "datasource": SOURCE, "expr": _selected(expression), "legendFormat": legend, "range": True}
        for letter, (expression, legend) in zip(letters, panel.targets, strict=False)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "thresholds": _thresholds(panel)}, "overrides": []},
        "options": _options(panel),
        "targets": targets,
    }


def _selected(expression: str) -> str:
    return expression.replace("##", SELECTED.strip("{}")).replace("#", SELECTED)


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.bad_from is not None:
        steps.append({"color": "red", "value": panel.bad_from})
    if panel.bad_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.bad_below}]
    return {"mode": "absolute", "steps": steps}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        shown = "name" if panel.unit == "string" else "auto"
        reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduced, "textMode": shown, "colorMode": "value", "graphMode": "none"}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def dashboard_json() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(dashboard_json(), encoding="utf-8")
