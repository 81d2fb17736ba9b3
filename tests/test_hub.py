"""What would prevent a publication is known before the run, as the real client and a Hub say it."""

import dataclasses
import re

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, constants

from mezzotint import hub
from mezzotint_training.config import TrainConfig


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with HubServer(token="hf_test") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server
    assert server.unknown == []


def settings(**changes) -> dict:
    """Settings of a run that can be published."""
    good = {
        "push_to_hub": True, "license": "apache-2.0", "dataset_license": "CC BY 4.0", "validation_prompts": ["a boot"]
    }  # fmt: skip
    return dataclasses.asdict(TrainConfig(**{"dataset_name": "digits"} | good | changes))


def problems(
    server: HubServer, name: str = "user/boots", token: str | None = "hf_test", **changes
) -> list[hub.Problem]:
    return hub.problems(settings(**changes), name, HfApi(endpoint=server.url, token=token))


@pytest.mark.parametrize("name", ["user/boots", "boots"])
def test_a_run_that_can_be_published_has_none(server, name):
    assert problems(server, name) == []
    assert not HfApi(endpoint=server.url, token=server.token).repo_exists("user/boots")  # nothing is tried


def test_the_hub_is_asked_only_where_something_is_to_be_uploaded(server):
    assert problems(server, push_to_hub=False, license=None, token=None) == []
    assert server.requests == []


@pytest.mark.parametrize(
    "name, token, words",
    [
        ("user/boots", None, "got none"),
        ("user/boots", "hf_wrong", "a token that the Hub accepts"),
        ("other/boots", "hf_test", r"namespace of the token's \(user\): got 'other/boots'"),
        ("a/b/c", "hf_test", "a name that the Hub takes"),
        ("user/red boots", "hf_test", "a name that the Hub takes"),
        ("user/..", "hf_test", "a name that the Hub takes"),
    ],
)
def test_what_would_fail_after_the_run_is_fatal_before_it(server, name, token, words):
    [problem] = problems(server, name, token)
    assert problem.fatal and "\n" not in problem.text
    assert re.search(words, problem.text)


def test_without_the_network_the_upload_is_told_to_wait(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    [problem] = problems(server)
    assert problem.fatal and "HF_HUB_OFFLINE" in problem.text and "mezzotint publish" in problem.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    [problem] = hub.problems(settings(), "user/boots", HfApi(endpoint="http://127.0.0.1:1", token="hf_test"))
    assert problem.fatal and "needs the Hub" in problem.text and "mezzotint publish" in problem.text


READ = {"role": "read"}


def scoped(name: str, *permissions: str) -> dict:
    return {"role": "fineGrained", "fineGrained": {"scoped": [{"entity": {"name": name}, "permissions": permissions}]}}


@pytest.mark.parametrize(
    "access, org_role, name, words",
    [
        ({"role": "write"}, "admin", "studio/boots", None),
        ({"role": "write"}, "read", "studio/boots", "may only read in studio"),
        ({"role": "write"}, "read", "user/boots", None),
        (READ, "admin", "user/boots", "may only read"),
        (scoped("user", "repo.content.read", "repo.write"), "admin", "user/boots", None),
        (scoped("user/boots", "repo.write"), "admin", "boots", None),
        (scoped("user", "repo.content.read"), "admin", "user/boots", "without repo.write"),
        (scoped("user", "repo.write"), "admin", "studio/boots", "may write to studio"),
        (scoped("user/shoes", "repo.write"), "admin", "user/boots", "without repo.write"),
    ],
)
def test_the_token_must_have_the_right_to_write_there(server, access, org_role, name, words):
    server.access, server.orgs = access, [{"name": "studio", "roleInOrg": org_role}]
    found = problems(server, name)
    assert [problem.fatal for problem in found] == ([] if words is None else [True])
    assert words is None or words in found[0].text


def test_a_licence_that_the_hub_does_not_take_is_fatal_for_an_upload_and_told_otherwise(server):
    [problem] = problems(server, license="apache2")
    assert problem.fatal and "does not take the card" in problem.text and "license" in problem.text
    [problem] = problems(server, license="Apache-2", push_to_hub=False)
    assert not problem.fatal and "'Apache-2'" in problem.text and "apache-2.0" in problem.text
    assert problems(server, license="apache-2.0", push_to_hub=False) == []


def test_what_the_card_will_lack_is_told(server):
    found = problems(server, license=None, dataset_license=None, validation_prompts=[])
    assert [problem.fatal for problem in found] == [False] * 3
    for setting, problem in zip(("license", "dataset_license", "validation_prompts"), found, strict=True):
        assert setting in problem.text


def test_every_problem_is_told_at_once(server):
    server.access = READ
    found = problems(server, license="mine", dataset_license=None)
    assert [problem.fatal for problem in found] == [False, True, True]


def test_figures_are_published_and_go_with_the_weights_that_they_were_of(server, tmp_path):
    for name in ("model_index.json", "metrics.json", "evaluation.json"):
        (tmp_path / name).write_text("{}")
    hub.push(tmp_path, "boots", token="hf_test")
    assert "evaluation.json" in server.files("user/boots")
    (tmp_path / "evaluation.json").unlink()
    hub.push(tmp_path, "boots", token="hf_test")
    assert server.files("user/boots").keys() - {".gitattributes"} == {"model_index.json", "metrics.json"}
