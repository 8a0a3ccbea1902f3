"""Dialogue: the next turn among distractors, its perplexity, and sampled replies."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from datasets import Dataset

from data_prep.files import InputError
from pipeline.evaluation.answers import f1
from pipeline.evaluation.shared_files import noted, own_or_shared
from pipeline.evaluation.task_files import Row, dataset
from pipeline.evaluation.writing import perplexities

COLUMNS = {"turns": ["dialog", "dialogue", "utterances", "conversation", "messages"]}
TEXT_NAMES = ("text", "utterance", "content", "value")
SPEAKER_NAMES = ("speaker", "role", "from", "name")
# Turns that are tried at random before the search goes through all.
TRIED = 200


class Turn(NamedTuple):
    speaker: str
    text: str


def dialogues(
    *,
    name: str,
    family: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    speakers: Mapping[str, str] | None = None,
    distractors: int = 0,
    seed: int = 0,
    **options: Any,
) -> dict[str, Dataset]:
    """Of each dialogue one turn, chosen by seed, after all before it: `context`, `speaker`, `turn`, and `choices` with `gold`.

    Args:
        family: tasks whose files serve this one too.
        speakers: names for the publisher's marks (U: User).
        distractors: wrong choices for each, turns of the same speaker in other dialogues, all different.

    Raises:
        InputError: a dialogue in no known form, or too few other turns. One of a single turn is left out, and counted.
    """

    left_out = 0

    def arranged(rows: list[Row]) -> list[Row]:
        nonlocal left_out
        spoken = [turns_of(row, speakers or {}) for row in rows]
        pool: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for number, turns in enumerate(spoken):
            for turn in turns:
                pool[turn.speaker].append((number, turn.text))
        found = []
        for number, (row, turns) in enumerate(zip(rows, spoken, strict=True)):
            if len(turns) < 2:
                left_out += 1
                continue
            # By its content, so that a dialogue is asked the same whatever else is in the file.
            random = Random(f"{seed} {turns}")
            position = random.randrange(1, len(turns))
            speaker, truth = turns[position]
            values: dict[str, Any] = {
                "context": "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns[:position]),
                "speaker": speaker,
                "turn": truth,
            }
            if distractors:
                wrong = others(pool[speaker], number, truth, distractors, random)
                if len(wrong) < distractors:
                    raise InputError(
                        f"{row.place} has {len(wrong)} different turns of {speaker} in other dialogues to choose wrong ones from, "
                        f"not {distractors}: give more dialogues, or lower `distractors` in the task's YAML."
                    )
                gold = random.randrange(distractors + 1)
                values |= {"choices": [*wrong[:gold], truth, *wrong[gold:]], "gold": gold}
            found.append(Row(values, row.place))
        return found

    ours = {"columns": COLUMNS, "form": arranged, "key": "context"}
    parts = dataset(name=name, data=own_or_shared(data, name, family), **{**ours, **options})
    return noted(parts, f"{left_out} of fewer than two turns" if left_out else "")


def others(pool: Sequence[tuple[int, str]], own: int, truth: str, count: int, random: Random) -> list[str]:
    """Up to `count` texts of other dialogues, of which none reads as another or as the truth."""
    seen, found = {alike(truth)}, []
    for candidates in (random.sample(pool, min(len(pool), TRIED)), pool):
        for dialogue, text in candidates:
            if len(found) == count:
                return found
            if dialogue != own and alike(text) not in seen:
                seen.add(alike(text))
                found.append(text)
    return found


def alike(text: str) -> str:
    """What two turns share that differ in case, spacing and punctuation alone."""
    return "".join(character for character in text.lower() if character.isalnum())


def turns_of(row: Row, speakers: Mapping[str, str]) -> list[Turn]:
    """The turns of a dialogue: [speaker, text] pairs, objects of both, or texts of two speakers who alternate.

    Turns without text are left out.
    """
    turns = row["turns"]
    if not isinstance(turns, list | tuple):
        raise InputError(
            f"{row.place} has the turns {turns!r:.60}: give a list of [speaker, text] or {{speaker, text}}."
        )
    found = [turn_of(turn, number, row.place) for number, turn in enumerate(turns)]
    return [
        Turn(speakers.get(speaker, speaker), " ".join(text.split())) for speaker, text in found if text and text.strip()
    ]


def turn_of(turn: Any, number: int, place: str) -> tuple[str, str]:
    if isinstance(turn, str):
        return "AB"[number % 2], turn
    if isinstance(turn, Mapping):
        text = next((turn[name] for name in TEXT_NAMES if isinstance(turn.get(name), str)), None)
        speaker = next((turn[name] for name in SPEAKER_NAMES if turn.get(name) not in (None, "")), "AB"[number % 2])
        if text is not None:
            return str(speaker), text
    elif isinstance(turn, list | tuple) and len(turn) == 2 and isinstance(turn[1], str):
        return str(turn[0]), turn[1]
    raise InputError(f"{place} has turn {number + 1} {turn!r:.80}: give [speaker, text], {{speaker, text}} or a text.")


def ranking(document: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Whether the true turn is the most likely (recall@1), also per character, and the reciprocal of its rank."""
    likelihoods = [likelihood for likelihood, _ in results]
    by_length = [value / len(choice) for value, choice in zip(likelihoods, document["choices"], strict=True)]
    gold = document["gold"]
    return {
        "acc": float(rank(likelihoods, gold) == 1),
        "acc_norm": float(rank(by_length, gold) == 1),
        "mrr": 1 / rank(likelihoods, gold),
        "mrr_norm": 1 / rank(by_length, gold),
    }


def rank(values: Sequence[float], place: int) -> int:
    """1 for the largest; of equal values the earlier comes first, as in an argmax."""
    own = values[place]
    return 1 + sum(value > own or (value == own and i < place) for i, value in enumerate(values))


def turn_perplexities(document: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Of the true next turn."""
    return perplexities(results[0][0], document["turn"])


def replies(document: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Of a sampled reply: its likeness to the true one, its length, and the text for the diversity of all."""
    text = results[0].strip()
    return {
        "f1": f1(text, [document["turn"]]),
        "words": float(len(text.split())),
        "distinct_1": text,
        "distinct_2": text,
    }
