"""Chat templates that contain the date, begin with reasoning, or have no system role; and models without a template."""

from __future__ import annotations

import datetime
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import chat_template_utils

from langptune.config.models import EncoderEntry
from langptune.config.prompts import Prompt
from langptune.data import contracts
from langptune.errors import UserError
from langptune.models.check import check_files
from langptune.models.load import load_tokenizer
from langptune.models.tiny import GEMMA_TEMPLATE
from langptune.profiles.generate import Reader, generate_batch
from langptune.prompts import PromptWriter
from langptune.provenance import Record
from langptune.thinking import opens_thought, read_reply, refuse_only_thoughts, without_thoughts
from tests.conftest import ROOT
from tests.unit.test_models import encoder_entry

pytestmark = pytest.mark.models

TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# From Llama-3.2.
LLAMA = """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
"""
# From Granite-3: the date is printed only if there is no system message.
GRANITE = """{%- if messages[0]['role'] != 'system' %}
{{- "Today's Date: " + strftime_now('%B %d, %Y') + ".\\n" }}
{%- endif %}
"""
# The time is printed only with a system message: hours and minutes, without leading zeros.
HOURS = """{%- if messages[0]['role'] == 'system' %}{{ "It is " ~ strftime_now('%-I:%M %p') }}{%- endif %}
"""
# From Qwen3 and DeepSeek-R1.
SWITCHED = """{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}"""
OPENED = "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"


@pytest.fixture
def folder_with(real_models, tmp_path):
    """A function that makes a folder with the real tokenizer of SmolLM2 and another chat template."""

    def make(template: str | None, name: str = "model") -> Path:
        folder = tmp_path / name
        shutil.copytree(real_models / "smollm2-135m", folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


def prompt(folder: Path, *talk: tuple[str, str]) -> str:
    talk = talk or (("user", "Hello"),)
    rows = [{"role": role, "content": text} for role, text in talk]
    return load_tokenizer(folder).apply_chat_template(rows, tokenize=False, add_generation_prompt=True)


def settled(folder: Path, **changes) -> dict[str, object]:
    return check_files(encoder_entry({"folder": str(folder)}, **changes), folder, "mine")


SYSTEM = (("system", "Be brief."), ("user", "Hello"))


@pytest.mark.parametrize(
    ("head", "talk", "shown"),
    [
        (LLAMA, (), "Today Date: 05 Mar 2026\n"),
        (GRANITE, (), "Today's Date: March 05, 2026.\n"),
        (HOURS, SYSTEM, "It is 12:00 AM"),
        ("{% set d = strftime_now('%A, %Y-%m-%d') %}{{ d }}\n", (), "Thursday, 2026-03-05"),
        ("{{ 'Year ' ~ (strftime_now('%Y') | int - 1) }}\n", (), "Year 2025"),
    ],
)
def test_a_chat_template_that_prints_the_day_needs_one(folder_with, monkeypatch, head, talk, shown):
    folder = folder_with(head + TURNS)
    before = prompt(folder, *talk)
    with pytest.raises(
        UserError, match=r"mine: the model's chat template prints today's date.*'date: 2026-01-01'"
    ) as e:
        settled(folder)
    assert "\n" not in str(e.value)
    assert settled(folder, date=datetime.date(2026, 3, 5)) == {"chat_template": {"date": "2026-03-05"}}
    now = prompt(folder, *talk)
    assert shown in now and now.partition("<|im_start|>")[2] == before.partition("<|im_start|>")[2]

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 24, 23, 59)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert prompt(folder, *talk) == now, "another day, the same prompt"


def test_an_ordinary_chat_template_stays_as_it_is(real_models, folder_with, tmp_path):
    own = (real_models / "smollm2-135m" / "chat_template.jinja").read_bytes()
    folder = folder_with(own.decode())
    assert settled(folder) == settled(folder, date=datetime.date(2026, 1, 1)) == {}
    assert (folder / "chat_template.jinja").read_bytes() == own
    entry = encoder_entry({"folder": "x"})
    assert not {"date", "chat_template_kwargs", "fold_system"} & set(entry.model_dump(mode="json"))
    dated = encoder_entry({"folder": "x"}, date=datetime.date(2026, 1, 1), chat_template_kwargs={"a": False})
    again = EncoderEntry.model_validate_json(dated.model_dump_json())
    assert again == dated and again.chat_template_kwargs == {"a": False}


def test_arguments_of_the_chat_template_apply_to_every_renderer(folder_with, tmp_path):
    folder = folder_with(LLAMA + TURNS + SWITCHED)
    cache = tmp_path / "cache.jinja"
    (folder / "chat_template.jinja").rename(cache)
    (folder / "chat_template.jinja").symlink_to(cache)  # as in a snapshot of the hub
    own = cache.read_text()
    assert settled(folder, chat_template_kwargs={"enable_thinking": False, "date_string": "1 'May'"}) == {
        "chat_template": {"enable_thinking": False, "date_string": "1 'May'"}
    }
    assert cache.read_text() == own, "the hub's cache is left alone"
    assert prompt(folder).endswith("<think>\n\n</think>\n\n") and "Today Date: 1 'May'\n" in prompt(folder)
    assert not opens_thought(load_tokenizer(folder))
    with pytest.raises(UserError, match=r"mine: chat_template_kwargs: .* reads no 'enable_thinkin'"):
        settled(folder_with(TURNS, "other"), chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(ValidationError, match="String should match pattern"):
        encoder_entry({"folder": "x"}, chat_template_kwargs={"a = 1 %}{{ b": 1})
    server = {"endpoint": "http://host/v1", "model": "m", "input_price": 0, "output_price": 0}
    with pytest.raises(ValidationError, match="'date' changes the chat template of a model with files"):
        encoder_entry(server, parameters=0, date=datetime.date(2026, 1, 1))
    with pytest.raises(ValidationError, match="'fold_system' goes with an endpoint"):
        encoder_entry({"folder": "x"}, fold_system=True)


IGNORES = TURNS.replace("{{ '<|im_start|>'", "{% if message['role'] != 'system' %}{{ '<|im_start|>'").replace(
    "{% endfor %}", "{% endif %}{% endfor %}", 1
)


@pytest.mark.parametrize(
    "template",
    [
        GEMMA_TEMPLATE,
        IGNORES,
        "{% if messages[0]['role'] not in ('user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
        + TURNS,
    ],
)
def test_a_system_message_goes_before_the_users_where_there_is_no_system_role(folder_with, template):
    folder = folder_with(template)
    user, joined = prompt(folder), prompt(folder, ("user", "Be brief.\n\nHello"))
    assert settled(folder) == {"chat_template": {"system_message": "put before the user's"}}
    assert prompt(folder) == user
    assert prompt(folder, *SYSTEM) == joined
    longer = (*SYSTEM, ("assistant", "Yes?"), ("user", "Go on."))
    assert prompt(folder, *longer) == prompt(folder, ("user", "Be brief.\n\nHello"), *longer[2:])


def test_models_without_a_usable_chat_template_are_one_line_when_fetched(folder_with):
    with pytest.raises(UserError, match="model 'mine': the tokenizer has no chat template"):
        settled(folder_with(None))
    with pytest.raises(UserError, match="drops the user message"):
        settled(folder_with("{{ 'Hello' }}", "deaf"))
    with pytest.raises(UserError, match="cannot be rendered: broken"):
        settled(folder_with("{{ raise_exception('broken') }}", "raises"))


@pytest.mark.parametrize("template", ["paper", "t"])
def test_a_prompt_writer_without_chat_template_is_one_line(folder_with, template):
    """The protocol `paper` counts prompt tokens with only a tokenizer; no model is loaded."""
    tokenizer = load_tokenizer(folder_with(None))
    with pytest.raises(UserError, match=r"model: the tokenizer has no chat template") as caught:
        PromptWriter(Prompt(template=template), template, tokenizer, 500)
    assert "\n" not in str(caught.value)


# Reasoning


@pytest.mark.parametrize(
    ("written", "opened", "profile", "thought"),
    [
        ("Likes westerns.", False, "Likes westerns.", False),
        (" Likes 3 < 4 films </b>\n", False, "Likes 3 < 4 films </b>", False),
        ("<think>\nHm, westerns.\n</think>\n\nLikes westerns.", False, "Likes westerns.", True),
        ("<think>\n\n</think>\n\nLikes westerns.", False, "Likes westerns.", True),
        ("Hm, westerns.\n</think>\n\nLikes westerns.", True, "Likes westerns.", True),
        ("Hm, westerns.\n</think>\n\nLikes westerns.", False, "Likes westerns.", True),
        ("<think>\nHm, westerns, and", False, "", True),
        ("Hm, westerns, and", True, "", True),
        ("<think>one</think>Likes <think>two</think>westerns.", False, "Likes westerns.", True),
        ("<think>a <think> b </think> c </think> Likes westerns.", False, "Likes westerns.", True),
        ("<THINKING>Hm</THINKING> Likes westerns.", False, "Likes westerns.", True),
        ("[THINK]Hm[/THINK]Likes westerns.", False, "Likes westerns.", True),
        ("<think>Hm</think>", False, "", True),
        ("", False, "", False),
    ],
)
def test_reasoning_is_no_part_of_a_profile(real_models, written, opened, profile, thought):
    assert without_thoughts(written, opened) == (profile, thought)
    tokenizer = load_tokenizer(real_models / "smollm2-135m")
    ids = tokenizer(written, add_special_tokens=False).input_ids
    for ended in (True, False):
        reply = read_reply(tokenizer, [*ids, 2] if ended else ids, {2}, opened)
        assert (reply.text, reply.thought) == (profile, thought)
        assert reply.finished == (ended and not (thought and not profile))


@pytest.mark.parametrize(("start", "end"), [("[THINK]", "[/THINK]"), ("<think>", "</think>")])
def test_reasoning_is_found_where_its_marks_are_special_tokens(real_models, start, end):
    """Decoding removes special tokens, and would keep the reasoning between them."""
    tokenizer = AutoTokenizer.from_pretrained(real_models / "smollm2-135m")
    tokenizer.add_special_tokens({"additional_special_tokens": [start, end]})
    ids = tokenizer(f"{start}Hm, westerns.{end} Likes westerns.<|im_end|>", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("Hm"), "else there is nothing to test"
    assert read_reply(tokenizer, ids, {2}, False).text == "Likes westerns."


@pytest.mark.parametrize(("template", "opened"), [(TURNS + OPENED, True), (TURNS, False), (TURNS + SWITCHED, False)])
def test_what_is_cut_before_the_end_of_its_reasoning_is_an_empty_profile(folder_with, template, opened):
    """The template begins the reasoning: a text that is cut before its end gives an empty, unfinished profile."""
    tokenizer = load_tokenizer(folder_with(template))
    tokenizer.padding_side = "left"
    assert opens_thought(tokenizer) is opened
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=2,
            pad_token_id=2,
        )
    ).eval()
    written = generate_batch(model, tokenizer, [[10, 11], [20, 21, 22]], [0, 1], 6, 0.0)
    assert [profile.thought for profile in written] == [opened] * 2
    assert all(not profile.text and not profile.finished for profile in written) or not opened
    assert all(profile.tokens for profile in written)

    # The same reader parses what vLLM wrote.
    read = Reader(model, tokenizer)
    assert [replace(read(profile.ids), logprob=profile.logprob) for profile in written] == written


def test_one_profile_of_reasoning_stops_no_run_and_most_do():
    refuse_only_thoughts(1, 10_000, 10_000, "M", 64)
    refuse_only_thoughts(63, 63, 10_000, "M", 64)  # too few profiles to decide
    refuse_only_thoughts(32, 64, 10_000, "M", 64)
    with pytest.raises(UserError, match=r"33 of 64 .* max_tokens 64 .*enable_thinking: false") as caught:
        refuse_only_thoughts(33, 64, 10_000, "M", 64)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="2 of 3"):
        refuse_only_thoughts(2, 3, 3, "M", 64)


def test_the_example_of_the_documentation_is_valid():
    text = (ROOT / "docs/extend.md").read_text()
    (entry,) = yaml.safe_load(re.search(r"```yaml\n(my-thinking-encoder:\n.*?)```", text, re.DOTALL)[1]).values()
    model = EncoderEntry.model_validate(entry)
    assert model.chat_template_kwargs == {"enable_thinking": False} and model.date == datetime.date(2026, 1, 1)


WRITE = runpy.run_path(str(ROOT / "scripts" / "write_profiles.py"))


def thinker(folder: Path, chance: float) -> None:
    """Save a model with its tokenizer; each token is ``</think>`` with probability ``chance``, or any other one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["</think>"])
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("norm" in name or "embed" in name))
        odds = chance / (1 - chance) * (len(tokenizer) - 1)
        model.lm_head.weight[-1] = float(np.log(odds)) / 8
    model.save_pretrained(folder)


@pytest.mark.usefixtures("one_thread")
def test_a_run_counts_reasoning_and_stops_where_there_is_little_else(folder_with, tmp_path):
    folder, data, sessions = folder_with(TURNS + OPENED), tmp_path / "data", range(6)
    thinker(folder, 0.1)
    data.mkdir()
    columns = {"user_id": "u", "split": "test", "history": [0], "ratings": [4.0], "reviews": None, "seen": [0]}
    rows = [{"session": session, **columns, "target": 1, "target_time": 5} for session in sessions]
    items = [{"item": i, "item_id": str(i), "title": f"T{i}", "text": "t", "first_seen": 0} for i in range(2)]
    tables = {
        "sessions": pl.DataFrame(rows, schema=contracts.SESSIONS),
        "items": pl.DataFrame(items),
        "users": pl.DataFrame({"user_id": ["u"]}),
        "evaluation": pl.DataFrame([{"session": session, "split": "test"} for session in sessions]),
    }
    for kind, table in tables.items():
        schema = contracts.CONTRACTS[kind]
        known = table.with_columns(pl.col(c).cast(schema[c]) for c in table.columns if c in schema)
        contracts.write(known, data / f"{kind}.parquet", kind)
    spec = {
        "encoder": encoder_entry({"folder": "x"}).model_dump(mode="json"),
        "encoder_in": str(folder),
        "prompt": "p",
        "prompt_entry": {"template": "{{ history[0].title }}"},
        "history_items": 1,
        "max_tokens": 16,
        "temperature": 1.0,
        "samples": 2,
        "batch_size": 4,
        "dtype": "float32",
        "threads": 1,
        **{f"{kind}_in": str(data / f"{kind}.parquet") for kind in tables},
        "journal": str(tmp_path / "journal"),
        "profiles_out": str(tmp_path / "profiles.parquet"),
    }

    def write(**changes) -> Record:
        record = Record(ROOT / "scripts" / "write_profiles.py", {})
        WRITE["work"](WRITE["Spec"].model_validate({**spec, **changes}), record, lambda line: None)
        return record

    first = write().notes
    profiles = contracts.read(tmp_path / "profiles.parquet", "profiles")
    empty = int((profiles["profile"] == "").sum())
    assert 0 < empty <= 6 and not profiles["profile"].str.contains("think").any()
    assert (first["reasoning_removed"], first["only_reasoning"], first["resumed"]) == (12, empty, 0)
    again = write().notes
    assert (again["reasoning_removed"], again["only_reasoning"], again["resumed"]) == (12, empty, 12)
    assert contracts.read(tmp_path / "profiles.parquet", "profiles").equals(profiles)
    # Greedy decoding writes only the end of the reasoning.
    with pytest.raises(UserError, match=r"E: 12 of 12 profiles are only reasoning.*max_tokens 16"):
        write(temperature=0.0, profiles_out=str(tmp_path / "greedy.parquet"))
    assert not (tmp_path / "greedy.parquet").exists()
