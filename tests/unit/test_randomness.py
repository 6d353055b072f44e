"""Random streams: each has a name, no phase repeats another phase's stream, and nothing else creates generators."""

from __future__ import annotations

import ast
import re
from itertools import combinations

import numpy as np
import pytest

from langptune import randomness
from langptune.config.phases import Phase
from tests import planted as p
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

HOME = ROOT / "src" / "langptune" / "randomness.py"
MAKERS = {"default_rng", "Generator", "SeedSequence", "RandomState", "PCG64", "Philox", "MT19937", "SFC64", "Random"}
MAKERS |= {"SystemRandom", "manual_seed", "manual_seed_all", "set_seed", "seed_everything"}
GLOBAL = re.compile(r"((np|numpy)\.)?random\.\w+|torch\.(rand|randn|randint|randperm|normal|bernoulli)(_like)?")
RECBOLE = {"src/langptune/baselines/engine/recbole_compat.py": {"torch.rand", "torch.randint"}}
"""Parts of RecBole's own models, which draw from torch's generator after RecBole has seeded it."""


def makers(source: str) -> list[str]:
    """Calls in a source that create a generator or draw from a process-wide one, and such imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in ("random", "numpy.random")]
        elif isinstance(node, ast.ImportFrom):
            if node.module in ("random", "numpy.random"):
                found.append(node.module)
            found += [alias.name for alias in node.names if node.module in ("numpy", "torch") and alias.name in MAKERS]
            found += ["numpy.random" for alias in node.names if (node.module, alias.name) == ("numpy", "random")]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.rpartition(".")[2] in MAKERS or GLOBAL.fullmatch(name):
                found.append(name)
    return found


def test_nothing_else_makes_generators():
    wrong = {}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        found = set(makers(path.read_text(encoding="utf-8"))) - RECBOLE.get(name, set())
        if path != HOME and found:
            wrong[name] = found
    for path in [ROOT / "workflow" / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]:
        if found := re.findall(r"default_rng|manual_seed|import random|random\.seed", path.read_text(encoding="utf-8")):
            wrong[path.relative_to(ROOT).as_posix()] = found
    assert not wrong, "a stream of its own; name it by langptune.randomness"
    assert set(makers(HOME.read_text(encoding="utf-8"))) == {
        "np.random.default_rng",
        "torch.manual_seed",
        "torch.Generator",
        "torch.Generator(device).manual_seed",
    }


@pytest.mark.parametrize(
    "line",
    [
        "np.random.default_rng(3)",
        "rng = np.random.default_rng([seed, 7])",
        "torch.Generator('cpu').manual_seed(seed)",
        "import random",
        "from numpy.random import default_rng as rng",
        "from numpy import random",
        "np.random.shuffle(rows)",
        "order = torch.randperm(9)",
        "transformers.set_seed(1)",
    ],
)
def test_the_search_finds_generators(line):
    assert makers(line)
    assert not makers("def draw(rng: np.random.Generator) -> float:\n    return rng.random()")


def test_names_are_streams():
    names = [
        (0, "contrastive-1", "negatives"),
        (1, "contrastive-1", "negatives"),
        (0, "contrastive-2", "negatives"),
        (0, "contrastive-1", "order"),
        (0, "contrastive-1", "negatives", 0),
        (0, "contrastive-1", "negatives", 1, 2),
        (0, "contrastive-1", "negatives", 12),
        (0, "contrastive-1", "negatives", "12"),
    ]
    drawn = [randomness.stream(*name).random(4) for name in names]
    assert all(not np.array_equal(a, b) for a, b in combinations(drawn, 2))
    assert len({randomness.stream_seed(*name) for name in names}) == len(names)
    for name in names:
        assert np.array_equal(randomness.stream(*name).random(4), randomness.stream(*name).random(4))
        assert randomness.stream_seed(*name) < 2**63
    numpy_integers = (np.int64(0), "contrastive-1", "negatives", np.int32(12))
    assert randomness.stream_seed(*numpy_integers) == randomness.stream_seed(0, "contrastive-1", "negatives", 12)


def test_streams_of_published_numbers_stay():
    assert randomness.numbered(3).random() == np.random.default_rng(3).random()
    assert randomness.numbered(3, 1, 2).random() == np.random.default_rng([3, 1, 2]).random()
    assert randomness.profile_seed(0, 7, 1) == 2001343553292486664
    assert randomness.profile_seed("0/2", 7, 1) == 2336472119320483612


CL, RL = p.contrastive(), p.reinforcement()


@pytest.mark.parametrize(
    "chain",
    [
        [("cl", CL), ("rlso", RL)] * 5,
        [("cl", CL)] * 5,
        [("cl", CL), ("cl-long", p.contrastive(batches=9)), ("rlso", RL), ("rlso-long", p.reinforcement(batches=9))],
    ],
)
def test_no_two_phases_of_a_chain_share_a_stream(chain):
    phases = Phase("p", 10, 64, chain=tuple(chain)).all()[1:]
    assert len({phase.stream for phase in phases}) == len(chain)
    draws = [draw.name for phase in phases for draw in phase.draws() if draw.split == "train" and draw.temperature]
    assert len(set(draws)) == len(draws)


def test_sampled_profiles_of_two_cl_recipes_are_two_draws():
    """Recipes with different names read different samples: a draw's number counts phases, not names."""
    sampled = [p.contrastive(profile_temperature=1.0, batches=batches) for batches in (3, 4)]
    chain = (("cl-a", sampled[0]), ("cl-b", sampled[1]))
    assert [phase.draws()[0].name for phase in Phase("p", 10, 64, chain=chain).all()[1:]] == [
        "train-t1-1",
        "train-t1-2",
    ]


def test_a_title_or_a_name_changes_no_stream():
    titled = p.contrastive(title="another", learning_rate=0.5)
    assert Phase("p", 10, 64, chain=(("x", titled),)).stream == Phase("q", 5, 9, chain=(("cl", CL),)).stream


def candidates(folder, phase, seed=0):
    """The rows and the uniform negatives that a CL trainer draws, for all of its batches."""
    trainer = p.decoder_trainer(folder, p.contrastive(batches=6), phase=phase, seed=seed)
    rows = trainer.order.tolist()
    uniform = []
    for step in range(6):
        trainer.state.global_step = step
        uniform.append(trainer._uniform().tolist())
    return rows, uniform


def test_iterations_of_cl_see_other_orders_and_negatives(tmp_path):
    first, again = (candidates(tmp_path / "a", "contrastive-1") for _ in range(2))
    second = candidates(tmp_path / "b", "contrastive-2")
    assert first == again
    assert first[0] != second[0] and all(a != b for a, b in zip(first[1], second[1], strict=True))


def written(folder, phase, batches=2, **planted):
    """Rows, seeds and token ids, one per profile, of each batch that an RLSO trainer really writes."""
    data = p.planted(**{"train": 40, "val": 4, **planted})
    trainer = p.policy_trainer(folder, p.reinforcement(batches=batches, epochs=1), data=data, phase=phase)
    write, measured, seeded, seen = trainer._write, trainer._measured, [], []

    def writing(prompts, seeds, limit, temperature, size):
        if temperature:
            seeded.append(list(seeds))
        return write(prompts, seeds, limit, temperature, size)

    def measuring(profiles, rows):
        seen.append((list(rows), seeded.pop(), [profile.ids for profile in profiles]))
        return measured(profiles, rows)

    trainer._write, trainer._measured = writing, measuring
    trainer.run()
    assert len(seen) == batches and not seeded
    return seen


def test_iterations_of_rlso_see_other_sessions_and_noise(tmp_path):
    first, second = (written(tmp_path / phase, phase) for phase in ("reinforcement-1", "reinforcement-2"))
    assert [rows for rows, _, _ in first] != [rows for rows, _, _ in second]
    assert not {seed for _, seeds, _ in first for seed in seeds} & {seed for _, seeds, _ in second for seed in seeds}


def test_a_session_twice_in_a_batch_has_other_profiles(tmp_path):
    """Three sessions fill eight places per batch, so each session occurs two or three times."""
    for rows, seeds, ids in written(tmp_path, "reinforcement-1", train=3):
        assert len(rows) == 16 and len(set(rows)) == 3
        assert len(set(seeds)) == 16
        for row in set(rows):
            own = [tuple(text) for at, text in zip(rows, ids, strict=True) if at == row]
            assert len(set(own)) > 2, "more than one pair of different texts"
