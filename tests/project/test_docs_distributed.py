"""docs/distributed.md can be pasted: its scripts parse, its options exist, its tables are what the command says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import List, Set, Tuple

import programs
import pytest
import yaml
from engine_tools import ROOT

sys.path.append(str(ROOT / "benchmarks"))

DOCS = tuple(ROOT / "docs" / name for name in ("distributed.md", "security.md"))
TEXT = DOCS[0].read_text(encoding="utf-8")
STARTERS = ("tpvformer", "torchrun", "tpvformer.engine.agent", "train_multi_node.sh", "train_8p.sh")


def blocks(language: str) -> List[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def commands() -> List[List[str]]:
    """The commands of all code blocks as lists of words, those of the job for Kubernetes included."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    job = next(yaml.safe_load_all(blocks("yaml")[0]))
    container = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    return [*found, container["command"]]


def used_options() -> List[Tuple[str, str]]:
    """(program, option) for every option that follows one of STARTERS."""
    found = []
    for words in commands():
        program = ""
        for word in words:
            name = word.rpartition("/")[2]
            if name in STARTERS:
                program = name
            elif program and word.startswith("--"):
                found.append((program, word.partition("=")[0]))
    return found


def known(program: str) -> Set[str]:
    if program.endswith(".sh"):
        done = programs.run(["bash", ROOT / "test" / program, "-h"], check=True)
        return set(re.findall(r"--\w+", done.stdout))
    if program == "tpvformer":
        from tpvformer.cli import _parser

        actions = _parser(["train"])._subparsers._group_actions[0].choices["train"]._actions
    else:
        from torch.distributed.run import get_args_parser

        actions = get_args_parser()._actions
    return {option for action in actions for option in action.option_strings}


def test_every_option_exists() -> None:
    used = used_options()
    assert {program for program, _ in used} == set(STARTERS)
    unknown = [(program, option) for program, option in used if option not in known(program)]
    assert not unknown
    assert "--nonsense" not in known("torchrun") and "--nonsense" not in known("train_multi_node.sh")


@pytest.mark.parametrize("script", blocks("bash"))
def test_scripts_parse(script: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script)
    done = programs.run(["bash", "-n", tmp_path / "script"])
    assert done.returncode == 0, done.stderr


def test_the_job_for_kubernetes_parses() -> None:
    job, policy = yaml.safe_load_all(blocks("yaml")[0])
    assert (job["kind"], policy["kind"]) == ("PyTorchJob", "NetworkPolicy")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    template = worker["template"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    mounted = {mount["name"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
    assert worker["replicas"] == job["spec"]["elasticPolicy"]["maxReplicas"]
    command = template["spec"]["containers"][0]["command"]
    assert (ROOT / next(word for word in command if word.startswith("--py-config")).partition("=")[2]).exists()


def test_the_bytes_are_computed() -> None:
    import bench_ranks

    for row in bench_ranks.bytes_table(("demo", "tpv_lidarseg_dim64")).splitlines()[2:]:
        assert row in TEXT, f"{row}: python benchmarks/bench_ranks.py --bytes says so, docs/distributed.md does not"


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    names = re.findall(r"`((?:tests?|benchmarks|config|tpvformer|compat|data)/[\w/]+\.(?:py|sh))", text)
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert names and links
    assert not [n for n in names if not (ROOT / n).exists() and not (ROOT / "tpvformer" / n).exists()]
    assert not [link for link in links if not (document.parent / link).exists()]
