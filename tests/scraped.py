"""What an application's metrics say, by sample name and labels."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

Scraped = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: TestClient) -> Scraped:
    return parse(client.get("/metrics").text)


def parse(text: str) -> Scraped:
    families = text_string_to_metric_families(text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(found: Scraped, name: str, **labels: Any) -> float:
    """Return a sample's value; of several that have these labels, their sum; 0 where there is none."""
    wanted = {key: str(label) for key, label in labels.items()}.items()
    return sum(number for (each, own), number in found.items() if each == name and wanted <= own)
