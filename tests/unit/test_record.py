"""The record of a run: what is written comes back, and damage costs only what follows it."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import group

from rlopt.core.errors import Fault, RloptError
from rlopt.data.collate import tabulate
from rlopt.data.offline_rollouts import Experience, Needs, load_experience
from rlopt.data.rollout_log import NAME, Damaged, Recorder, blocks, group_from_json, group_to_json, header, short
from rlopt.data.wording import Wording
from rlopt.diagnosis.evidence import read_tokens

ABOUT = header("0123", "tiny_s", 1.0, 1.0)
NEEDS = Needs(max_tokens=100, siblings=True, logprobs=None)


class Letters:
    """A tokenizer of lower-case letters; 1 ends an answer."""

    eos_token_id = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) - 95 for letter in text if letter.islower()]


WORDS = Wording(Letters(), None, False, None)


def write(run: Path, steps: range, first: int = 0, known: bool = True) -> Path:
    recorder = Recorder(run, first, ABOUT, logprobs_known=known)
    for step in steps:
        groups = [group(f"{step}/{i}", (1.0, 0.0)) for i in range(2)]
        recorder.step(step, groups, torch.arange(24, dtype=torch.float32).reshape(4, 6) * -0.1)
    return run / NAME


def load(path: Path, needs: Needs = NEEDS, mine: dict[str, object] = ABOUT, drop: bool = False) -> Experience:
    return load_experience(str(path), WORDS, mine, needs, drop)


def test_groups_come_back_as_they_were_recorded_to_the_last_bit() -> None:
    before = group("a", (0.1, 1 / 3), version=7)
    after = group_from_json(json.loads(json.dumps(group_to_json(before))))
    for old, new in zip(before.samples, after.samples, strict=True):
        for name in ("token_ids", "action_mask", "logprobs", "versions"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
            assert getattr(new, name).dtype == getattr(old, name).dtype
        assert (new.text, new.finish, new.reward) == (old.text, old.finish, old.reward)
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(np.array(short(values), np.float32), values)


def test_a_record_is_lines_that_any_tool_reads_with_both_log_probabilities_of_every_token(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in gzip.decompress(write(tmp_path, range(1, 3)).read_bytes()).decode().splitlines()]
    assert rows[0] == ABOUT
    assert [row["step"] for row in rows[1:]] == [1, 1, 2, 2]
    first, second = rows[1]["samples"]
    assert first["logprobs"] == [-0.5, -0.5]
    assert first["policy"] == pytest.approx([-0.3, -0.4])  # after three tokens of prompt
    assert second["policy"] == pytest.approx([-0.9, -1.0, -1.1])


def test_log_probabilities_that_are_not_known_are_recorded_as_null_and_not_as_zero(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 3), known=False)
    row = json.loads(gzip.decompress(path.read_bytes()).decode().splitlines()[1])
    assert row["samples"][0]["logprobs"] is None
    assert row["samples"][0]["policy"] == pytest.approx([-0.3, -0.4])
    assert load(path).has_logprobs is False
    assert read_tokens(path)[0] is None


def test_a_resumed_run_writes_over_the_steps_that_it_makes_again_and_over_a_half_written_one(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 6))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])  # killed while writing step 5
    write(tmp_path, range(4, 6), first=3)
    assert path.read_bytes() == whole


def test_damage_is_reported_with_its_byte_and_the_groups_before_it_are_used(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 6))
    ends = [block.end for block in blocks(path)]
    data = bytearray(path.read_bytes())
    data[ends[3] + 40] ^= 255  # in the block of step 4
    path.write_bytes(data)
    found = load(path)
    assert [one.prompt.id for one in found.groups(0, 6)] == ["1/0", "1/1", "2/0", "2/1", "3/0", "3/1"]
    assert len(found) == 6
    assert f"damaged from byte {ends[3]} of {len(data)} on" in str(found.damage)
    assert "the 6 groups before it are used" in str(found.damage)
    path.write_bytes(data[: ends[2] + 5])
    assert "in the middle of a block" in str(load(path).damage)
    with pytest.raises(Damaged):
        list(blocks(path))


def test_a_broken_line_of_a_file_that_is_not_compressed_is_reported_with_its_own_byte(tmp_path: Path) -> None:
    good = json.dumps({**TEXTS, "answer": "é"}, ensure_ascii=False)  # a byte more than its letters
    path = tmp_path / "own.jsonl"
    path.write_text(f'{good}\n{good}\n{{"prompt": "ab", \n{good}\n')
    found, begins = load(path), 2 * (len(good) + 2)
    assert len(found) == 2
    assert f"damaged from byte {begins} of {path.stat().st_size} on: line 3 is not JSON" in str(found.damage)
    assert path.read_bytes()[begins:].startswith(b'{"prompt": "ab", \n')


def test_a_byte_that_is_not_text_loses_only_its_line_and_what_follows(tmp_path: Path) -> None:
    good = (json.dumps(TEXTS) + "\n").encode()
    path = tmp_path / "own.jsonl"
    path.write_bytes(good * 3 + b'{"prompt": "a\xe9"}\n' + good)
    found = load(path)
    assert len(found) == 3
    assert f"damaged from byte {3 * len(good)} of {path.stat().st_size} on: no UTF-8" in str(found.damage)
    assert len(found.groups(0, 3)) == 3
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(good) + gzip.compress(b"\xe9\n"))
    assert f"damaged from byte {len(gzip.compress(good))} of" in str(load(packed).damage)


def test_recorded_groups_count_as_version_0_and_begin_again_at_the_end_of_the_file(tmp_path: Path) -> None:
    found = load(write(tmp_path, range(1, 3)))
    groups = found.groups(3, 3)
    assert [one.prompt.id for one in groups] == ["2/1", "1/0", "1/1"]
    assert tabulate(groups, step=9).lag.tolist() == [8] * 6
    assert found.has_logprobs
    assert (found.longest, found.largest) == (6, 2)


def test_a_record_of_another_tokenizer_or_temperature_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 2))
    with pytest.raises(RloptError, match=r"recorded with another tokenizer \(model.path=tiny_s\).* to model.path=qwen"):
        load(path, mine=header("4567", "qwen", 1.0, 1.0))
    with pytest.raises(RloptError, match=r"was sampled at temperature 1.0.* set rollout.temperature=1.0"):
        load(path, mine=header("0123", "tiny_s", 0.7, 1.0))


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


TEXTS = {"prompt": "ab", "samples": [{"text": "cd", "reward": 1}, {"text": "c", "reward": 0}]}


def test_users_texts_are_tokenized_and_have_no_log_probabilities(tmp_path: Path) -> None:
    found = load(lines(tmp_path / "own.jsonl", TEXTS))
    (one,) = found.groups(0, 1)
    assert one.prompt.token_ids == (2, 3)
    assert [sample.token_ids.tolist() for sample in one.samples] == [[4, 5, 1], [4, 1]]
    assert not found.has_logprobs
    with pytest.raises(RloptError, match="has groups without behavior log-probabilities, and grpo divides by them"):
        load(tmp_path / "own.jsonl", Needs(100, True, "grpo divides by them"))


def test_users_texts_are_worded_as_sampled_prompts_are(tmp_path: Path) -> None:
    words = replace(WORDS, template="q{prompt}a")
    (one,) = load_experience(str(lines(tmp_path / "own.jsonl", TEXTS)), words, ABOUT, NEEDS, False).groups(0, 1)
    assert (one.prompt.token_ids, one.prompt.text) == ((18, 2, 3, 2), "ab")


def test_groups_with_prompts_that_are_evaluated_on_are_left_out_and_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "own.jsonl", TEXTS, {**TEXTS, "prompt": "abc"})
    found = load(path, replace(NEEDS, held_out=frozenset({"ab"})))
    assert (len(found), found.dropped) == (1, {"also in data.eval": [1]})
    with pytest.raises(RloptError, match=r"no group can be used \(also in data.eval\)"):
        load(path, replace(NEEDS, held_out=frozenset({"ab", "abc"})))


def test_token_ids_are_refused_without_the_line_that_names_their_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 2))
    first, *others = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(load(lines(tmp_path / "whole.jsonl", first, *others))) == 2
    with pytest.raises(
        RloptError, match="2 of 2 groups are unusable .line 1: token ids, and no first line that says what made"
    ):
        load(lines(tmp_path / "rest.jsonl", *others))
    huge = json.loads(others[0])
    huge["samples"][0]["token_ids"][0] = 2**31
    with pytest.raises(RloptError, match="1 of 3 groups are unusable .line 3: no group"):
        load(lines(tmp_path / "huge.jsonl", first, others[0], huge, others[1]))


def test_groups_that_cannot_be_used_are_refused_by_line_or_left_out_and_counted(tmp_path: Path) -> None:
    lone, nan = {"prompt": "ab", "samples": TEXTS["samples"][:1]}, json.loads(json.dumps(TEXTS))  # type: ignore[index]
    nan["samples"][0]["reward"] = float("nan")
    path = lines(tmp_path / "own.jsonl", TEXTS, lone, {"text": 1}, nan, {"prompt": "ab", "samples": []})
    with pytest.raises(
        RloptError, match=r"4 of 5 groups are unusable \(line 2: one sample, and advantages are relative to the group"
    ):
        load(path)
    found = load(path, drop=True)
    assert len(found) == 1
    assert [numbers for _, numbers in sorted(found.dropped.items(), key=lambda item: item[1])] == [[2], [3], [4], [5]]
    assert len(load(path, Needs(100, False, None), drop=True)) == 2
    with pytest.raises(RloptError, match="more than 4 tokens"):
        load(lines(tmp_path / "long.jsonl", TEXTS), Needs(4, True, None))


def test_a_file_that_is_not_there_or_has_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match=r"data.experience=.*none.jsonl: no such file; give the experience.jsonl.gz of a run"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(RloptError, match="no group can be used"):
        load(lines(tmp_path / "empty.jsonl"))
    with pytest.raises(RloptError, match=r"no group can be used \(damaged from byte 0 of 9 on: line 1 is not JSON"):
        load(lines(tmp_path / "bad.jsonl", "not JSON"))


def test_faults_come_back_with_a_checkpoint_and_not_with_recorded_groups(tmp_path: Path) -> None:
    faulty = replace(group("a", (1.0, 0.0)), refills=2, faults=(Fault("timeout", "took long"),))
    row = json.loads(json.dumps(group_to_json(faulty)))
    assert group_from_json(row).faults == (Fault("timeout", "took long"),)
    file = tmp_path / "groups.jsonl"
    file.write_text(json.dumps(ABOUT) + "\n" + json.dumps({"step": 1, **row}) + "\n")
    again = load(file).groups(0, 1)[0]
    assert (again.refills, again.faults) == (0, ())


def test_a_last_line_without_a_line_break_counts_and_blank_lines_do_not(tmp_path: Path) -> None:
    text = json.dumps(TEXTS) + "\n\n" + json.dumps(TEXTS) + "\n \n" + json.dumps(TEXTS)
    (tmp_path / "own.jsonl").write_text(text)
    (tmp_path / "own.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("own.jsonl", "own.jsonl.gz"):
        found = load(tmp_path / name)
        assert (len(found), found.damage, found.dropped) == (3, None, {}), name
        assert [one.prompt.token_ids for one in found.groups(0, 3)] == [(2, 3)] * 3
