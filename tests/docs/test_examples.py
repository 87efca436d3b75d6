"""Every example that the interactive documentation shows is a request that is answered."""

from typing import Any

import pytest
from starlette.testclient import TestClient
from tables import README

from service.api import create_app
from service.repository import Repository
from service.settings import Settings

MODELS = README.parent / "models"
NAMES = ("diabetes", "digits", "digits-dropconnect", "digits-rows")


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_app(Settings(models=MODELS), Repository(MODELS)))


def examples(client: TestClient, path: str) -> dict[str, Any]:
    body = client.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]
    found: dict[str, Any] = body["content"]["application/json"]["examples"]
    return {name: each["value"] for name, each in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_shown_requests_are_answered_alike_on_both_protocols(client: TestClient, name: str) -> None:
    ours = client.post("/predict", json=examples(client, "/predict")[name])
    theirs = client.post(f"/v2/models/{name}/infer", json=examples(client, "/v2/models/{model}/infer")[name])

    assert (ours.status_code, theirs.status_code) == (200, 200), (ours.text, theirs.text)
    served = {each["name"]: each["data"] for each in theirs.json()["outputs"]}
    for quantity in ("mean", "variance"):
        assert served[quantity] == [value for row in ours.json()[quantity] for value in row]


def test_every_model_has_an_example(client: TestClient) -> None:
    assert tuple(examples(client, "/predict")) == NAMES
