"""The dashboard and the alerts speak of metrics and labels that the service really has, and of headings that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from events.account import AccountThrottled
from events.attempt import AttemptEnded
from events.fact import Entry
from events.message import MessageAccepted
from events.values import Outcome
from gateway.metrics import GAUGES, LABELLED, Metrics
from store.following import batch_of
from store.reading import Counts

from .dashboard import COLUMNS, DASHBOARD, dashboard_json
from .source import ROOT
from .test_documents import OPERATIONS, anchors

ALERTS = ROOT / "docs" / "alerts.yml"

OF_THE_SCRAPE = {"job", "instance"}
"""Labels that Prometheus adds."""

OF_PROMETHEUS = {"up": OF_THE_SCRAPE}
"""Series that Prometheus makes."""

KEYWORDS = {"by", "on", "without", "ignoring", "and", "or", "unless", "bool", "offset", "e"}


@cache
def rendered() -> dict[str, set[str]]:
    """Every series that the service can give, with its labels, as a scrape parses it."""
    metrics = Metrics()
    facts = (
        MessageAccepted(id="m", priority=2, due_us=0, expires_us=0, size=1, recipients=("r",), letter="l"),
        *(
            AttemptEnded(attempt=1, outcomes=(Outcome(0, "delivered"),), next=then)
            for then in ("done", "failed", "due")
        ),
        AccountThrottled(until_us=1, window_s=60),
    )
    metrics.fold(batch_of(tuple(Entry(seq, 0, 1, 1, fact) for seq, fact in enumerate(facts, 1))), {1: "a"}, 0)
    labelled = {name: {"x": 1.0} for name in LABELLED}
    text = metrics.render(Counts({}, 0, 0), dict.fromkeys(GAUGES, 1.0), labelled).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def named(expression: str) -> tuple[set[str], set[str]]:
    """(metrics, labels) that an expression of PromQL names: whatever is no function, keyword, number or duration."""
    text = expression.replace("${prefix}", "asyncmail")
    labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"", text))
    metrics = {name for pattern in re.findall(r'__name__=~"([^"]+)"', text) for name in alternatives(pattern)}
    for listed in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", text):
        labels.update(re.findall(r"\w+", listed))
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without|ignoring)\s*\([^)]*\)", " ", text)
    words = re.findall(r"(?<![\w.])[a-z_][a-z0-9_]*(?!\w)(?!\s*\()", text)
    return metrics | set(words) - KEYWORDS, labels - {"__name__"}


def alternatives(pattern: str) -> Iterator[str]:
    """The names that a pattern of alternatives, with at most one group in each, stands for."""
    for part in re.split(r"\|(?![^(]*\))", pattern):
        group = re.search(r"\(([^)]*)\)", part)
        for choice in group[1].split("|") if group else [""]:
            yield part.replace(group[0], choice) if group else part


def faults(expression: str) -> list[str]:
    """What the service does not have."""
    known = rendered() | OF_PROMETHEUS
    # The older metrics are there under one of two prefixes.
    metrics = {re.sub(r"^gmp_", "asyncmail_", name) for name in named(expression)[0]}
    labels = OF_THE_SCRAPE.union(*(known.get(metric, set()) for metric in metrics))
    unknown = [metric for metric in metrics if metric not in known]
    return unknown + [label for label in named(expression)[1] if label not in labels]


def alerts() -> list[dict[str, object]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, object]]:
    return json.loads(DASHBOARD.read_text())["panels"]


def test_names_are_found_in_an_expression():
    expression = (
        'sum by (le, x) (rate(a_total{job="j",le!="1"}[5m])) > 2e8 and on (y) b unless c{__name__=~"d_(e|f)|g"}'
    )
    assert named(expression) == ({"a_total", "b", "c", "d_e", "d_f", "g"}, {"le", "x", "job", "y"})
    assert faults('letterbook_nonsense{state="x"} + letterbook_messages{stat="held"}') == [
        "letterbook_nonsense",
        "stat",
    ]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_names_what_there_is_and_where_to_read(rule):
    assert not faults(rule["expr"])
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    page, anchor = re.search(r": ([\w.]+)#([\w-]+)$", rule["annotations"]["runbook"]).groups()
    assert page == OPERATIONS.name and anchor in anchors(OPERATIONS)
    assert rule["annotations"]["summary"].endswith(".")


def test_every_symptom_that_can_be_measured_has_its_alert():
    """What an operator is told to do has something that tells them when."""
    symptoms = OPERATIONS.read_text().split("\n## At three in the morning\n")[1].split("\n## ")[0]
    runbooks = " ".join(str(rule["annotations"]) for rule in alerts())
    headings = [
        re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^### (.+)$", symptoms, re.M)
    ]
    assert not [heading for heading in headings if f"#{heading}" not in runbooks]


def test_alerts_have_different_names():
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) > 12


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_takes_the_rules_and_they_fire_when_they_should():
    for command in (("check", "rules", ALERTS), ("test", "rules", Path(__file__).with_name("alerts_fire.yml"))):
        said = subprocess.run(("promtool", *command), capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 0, said.stdout + said.stderr


# The dashboard


def test_the_dashboard_is_what_the_table_makes_of_it():
    assert DASHBOARD.read_text(encoding="utf-8") == dashboard_json()


@pytest.mark.parametrize(
    "panel", [each for each in panels() if each["type"] != "row"], ids=lambda panel: panel["title"]
)
def test_a_panel_shows_what_there_is_and_says_what_it_is(panel):
    assert panel["title"] and panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"] and len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert not faults(re.sub(r"\$__rate_interval", "5m", target["expr"])), target["expr"]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= {
            label for each in rendered().values() for label in each
        }
        assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= {"job", "instance", "prefix", "__rate_interval"}


def test_panels_lie_on_the_grid_and_none_on_another():
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS and place["y"] >= 0 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_the_dashboard_can_be_imported():
    """What Grafana's import needs: a title, a schema, unique ids, and the data source as a variable."""
    found = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in found["panels"]]
    assert found["title"] and found["schemaVersion"] >= 36 and "id" not in found and len(set(ids)) == len(ids)
    variables = {each["name"]: each for each in found["templating"]["list"]}
    assert set(variables) == {"datasource", "job", "instance", "prefix"}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert all(each.get("label") for each in variables.values())


def test_every_metric_is_on_the_dashboard_or_in_an_alert():
    shown = " ".join([DASHBOARD.read_text(), ALERTS.read_text()]).replace("${prefix}", "asyncmail")
    assert not [name for name in {*GAUGES, *LABELLED} if f"letterbook_{name}" not in shown]
