"""Image folders as people have them: numbered, with systems' files, in all of Pillow's formats."""

from pathlib import Path

import pytest
from PIL import Image

from feature_collisions.data.image_folder import ImageFolder
from feature_collisions.data.images import image_endings, load_image
from feature_collisions.settings.evaluate import EvaluateSettings
from feature_collisions.settings.patches import PatchSettings
from feature_collisions.settings.train import ClassifierSettings, DataSettings


def made(root: Path, *names: str) -> ImageFolder:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(root / name, "JPEG")
    return ImageFolder(DataSettings("image_folder", str(root), size=8))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([str(k) for k in range(12)], [str(k) for k in range(12)]),
        (["010", "9", "0100"], ["9", "010", "0100"]),
        (["7", "30", "100"], ["7", "30", "100"]),
        (["10", "9", "other"], ["10", "9", "other"]),
    ],
)
def test_numbers_are_in_numerical_order(
    tmp_path: Path, folders: list[str], expected: list[str]
) -> None:
    found = made(tmp_path, "__MACOSX/1.jpg", *(f"{name}/1.jpg" for name in folders))
    assert list(found.class_names) == expected
    assert [path.parent.name for path, _ in found.files] == expected
    assert found.labels.tolist() == list(range(len(expected)))


@pytest.mark.parametrize(
    "name",
    ["__MACOSX", ".git", "$RECYCLE.BIN", "System Volume Information", ".DS_Store"],
)
@pytest.mark.filterwarnings("error")
def test_folders_of_systems_are_no_classes(tmp_path: Path, name: str) -> None:
    found = made(tmp_path, "cat/1.jpg", f"{name}/1.jpg", f"cat/{name}/2.jpg", "cat/._1.jpg",
                 "cat/Thumbs.db", ".DS_Store/x")  # fmt: skip
    assert found.class_names == ("cat",)
    assert len(found) == 1


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    (tmp_path / "cat" / "deep").mkdir(parents=True)
    for name in ("notes.txt", "cat/a.HEIC", "cat/b.heic", "cat/README", "cat/deep/c.raw"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"data\.root.* skipped 5 files") as said:
        made(tmp_path, "cat/1.jpg")
    text = str(said[0].message)
    for part in ("2 .heic", "1 .txt", "1 without an extension", "1 .raw"):
        assert part in text


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JFIF", ".avif", ".jp2", ".pbm", ".apng"])
def test_pillows_formats_are_read(tmp_path: Path, ending: str) -> None:
    if ending.lower() not in image_endings():
        pytest.skip("not in this Pillow")
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / f"1{ending}"
    mode = "1" if ending == ".pbm" else "RGB"
    Image.new(mode, (8, 8), 1).save(path, Image.registered_extensions()[ending.lower()])
    found = ImageFolder(DataSettings("image_folder", str(tmp_path), size=8))
    assert found[0].shape == (3, 8, 8)


def test_formats_that_start_programs_are_not_read() -> None:
    assert not {".eps", ".ps", ".pdf"} & image_endings()


def test_home_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made(tmp_path / "data", "a/1.jpg")
    assert len(ImageFolder(DataSettings("image_folder", "~/data", size=8))) == 1
    assert load_image("~/data/a/1.jpg", (3, 8, 8)).shape == (3, 8, 8)
    home = str(tmp_path)
    assert DataSettings("image_folder", "~/data").root == f"{home}/data"
    assert ClassifierSettings("file", "~/w.pt", "auto").weights == f"{home}/w.pt"
    assert PatchSettings(root="~/p").root == f"{home}/p"
    assert EvaluateSettings(run="~/run").run == f"{home}/run"
