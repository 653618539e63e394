"""Datasets in their published layouts become cases: which videos, which prompts, always the same."""

import json
from pathlib import Path

import pytest

from cinemo.synthetic import KINDS, make_clip
from pipelines.evaluate import datasets


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    for name in ("ApplyEyeMakeup", "YoYo", "HandstandPushups"):
        (tmp_path / name).mkdir()
        for group in range(1, 5):
            (tmp_path / name / f"v_{name}_g{group:02d}_c01.avi").touch()
    return tmp_path


@pytest.fixture
def msrvtt(tmp_path: Path) -> Path:
    names = [f"video{number}" for number in range(7010, 7016)]
    videos = [{"video_id": name, "split": "test"} for name in names] + [{"video_id": "video1", "split": "train"}]
    sentences = [{"video_id": name, "caption": f"{name} says {k}"} for name in names for k in range(20)]
    (tmp_path / "test_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (tmp_path / "TestVideo").mkdir()
    for name in names[1:]:
        (tmp_path / "TestVideo" / f"{name}.mp4").touch()
    return tmp_path


def test_ucf101_s_prompts_are_its_classes_in_words(ucf101: Path) -> None:
    cases = datasets.read(f"ucf101:{ucf101}", None, 0)
    assert len(cases) == 12
    assert {case["caption"] for case in cases} == {"apply eye makeup", "yo yo", "handstand pushups"}
    assert cases[0]["name"] == "v_ApplyEyeMakeup_g01_c01"
    assert Path(cases[0]["uri"]).is_file()


def test_a_limit_is_a_random_choice_that_is_always_the_same(ucf101: Path) -> None:
    first = [case["name"] for case in datasets.read(f"ucf101:{ucf101}", 5, 0)]
    assert first == [case["name"] for case in datasets.read(f"ucf101:{ucf101}", 5, 0)]
    assert set(first) < {case["name"] for case in datasets.read(f"ucf101:{ucf101}", 8, 0)}  # a larger one adds
    assert first != [case["name"] for case in datasets.read(f"ucf101:{ucf101}", 5, 1)]


def test_the_protocol_takes_2048_of_ucf101(tmp_path: Path) -> None:
    (tmp_path / "Archery").mkdir()
    for number in range(2100):
        (tmp_path / "Archery" / f"v_Archery_g{number}_c01.avi").touch()
    assert len(datasets.read(f"ucf101:{tmp_path}", None, 0)) == 2048


def test_msrvtt_s_test_split_has_one_caption_each_and_missing_videos_stay_in(msrvtt: Path) -> None:
    cases = datasets.read(f"msrvtt:{msrvtt}", None, 0)
    assert [case["name"] for case in cases] == [f"video{number}" for number in range(7010, 7016)]
    assert all(case["caption"].startswith(case["name"]) for case in cases)
    assert [Path(case["uri"]).is_file() for case in cases] == [False, *[True] * 5]


def test_synthetic_cases_know_their_motion() -> None:
    cases = datasets.read(f"synthetic:{len(KINDS) + 2}", None, 0)
    assert [case["kind"] for case in cases] == [*KINDS, *KINDS[:2]]
    for case in cases[:3]:
        clip = make_clip(int(case["uri"].rsplit(":", 1)[1]), (64, 96), kinds=(case["kind"],), held_out=True)
        assert (clip.caption, clip.kind, clip.direction) == (case["caption"], case["kind"], case["direction"])
    assert {case["kind"] for case in datasets.read("synthetic:4:pan,zoom", None, 0)} == {"pan", "zoom"}
    assert len(datasets.read("synthetic:10", 3, 0)) == 3


def test_any_source_of_captioned_videos_is_a_dataset(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.mp4").touch()
        (tmp_path / f"{name}.txt").write_text(f"this is {name}")
    cases = datasets.read(str(tmp_path), None, 0)
    assert [case["caption"] for case in cases] == ["this is a", "this is b"]
    assert len({case["name"] for case in cases}) == 2


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("synthetic:many", "it has no number of clips"),
        ("synthetic:4:dance", r"kinds \('dance',\) holds"),
        ("ucf101:{folder}", "it is not UCF-101 as it is published"),
        ("msrvtt:{folder}", "it is not MSR-VTT as it is published"),
        ("{folder}/none", "does not exist"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_sentence(dataset: str, words: str, tmp_path: Path) -> None:
    name = dataset.format(folder=tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        datasets.read(name, None, 0)
    assert str(error.value).startswith(f"--dataset {name}: ")


def test_a_damaged_list_is_refused(msrvtt: Path) -> None:
    (msrvtt / "test_videodatainfo.json").write_text('{"videos": 3}')
    with pytest.raises(ValueError, match=r"test_videodatainfo\.json is not MSR-VTT's"):
        datasets.read(f"msrvtt:{msrvtt}", None, 0)
