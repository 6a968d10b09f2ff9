"""Whatever holds images becomes one dataset that can be read again and again."""

import numpy as np
import pytest
import torch
from pictures import ids, numbered, save_images
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from factorize.data.as_data import as_data
from factorize.data.load_data import load_data
from factorize.errors import DataError
from factorize.types import Data

X = torch.from_numpy(numbered(100)).permute(0, 3, 1, 2).float() / 255
Y = torch.arange(100) % 3
BATCHES = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 100, 20)]


class Samples(Dataset):
    """As Hugging Face's: each sample is a dict."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"pixel_values": X[index], "labels": int(Y[index])}


class Foreign:
    """A dataset that is none of torch's."""

    column_names = ("image", "label")

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"image": X[index], "label": Y[index]}


class Again:
    """Neither list nor loader, but can be read again."""

    def __iter__(self):
        return iter(BATCHES)


@pytest.mark.parametrize(
    ("source", "apart"),
    [
        (DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True), True),
        (DataLoader(Samples(), batch_size=20), True),
        (TensorDataset(X, Y), True),
        (Samples(), True),
        (Foreign(), True),
        (BATCHES, False),
        ([{"image": x, "label": y} for x, y in BATCHES], False),
        (Again(), False),
        (Data(DataLoader(TensorDataset(X, Y), batch_size=20)), True),
        (Data(BATCHES), False),
        ({"train": TensorDataset(X, Y), "test": BATCHES}, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_many_forms_are_one_dataset(source, apart):
    before = torch.get_rng_state()
    data = as_data(source)
    assert torch.equal(torch.get_rng_state(), before)
    assert data.labelled
    train, held = ids(data.train), ids(data.holdout)
    assert sorted({*train, *held}) == list(range(100))
    if apart:
        assert len(held) == 20
        assert not {*train} & {*held}
        assert any("held out" in note for note in data.notes)
    else:
        assert data.holdout_of == "training images"
    assert ids(data.train) == train
    for images, labels in (*data.train, *data.holdout):
        assert [i % 3 for i in ids([(images,)])] == labels.tolist()


def test_images_alone_come_without_labels(tmp_path):
    for source in (X, [x for x, _ in BATCHES], DataLoader(X, batch_size=20)):
        data = as_data(source)
        assert not data.labelled
        assert not any("labels" in note for note in data.notes)
        assert [*{*ids(data.train), *ids(data.holdout)}] == list(range(100))
    save_images(tmp_path, 10)
    data = as_data(tmp_path, torch.zeros(1, 1, 6, 6))
    assert next(iter(data.train))[0].shape[1:] == (1, 6, 6)
    assert any("not normalised" in note for note in data.notes)
    assert as_data("digits").classes == 10


def test_a_complete_dataset_stays_what_it_is(tmp_path):
    np.savez(tmp_path / "a.npz", images=numbered(60), labels=np.arange(60) % 3)
    loaded = load_data(tmp_path / "a.npz")
    assert as_data(loaded) is loaded
    given = Data(BATCHES, BATCHES[:1], None, source="mine", notes=("as it was",))
    made = as_data(given)
    assert made == given
    assert made.train is given.train
    assert as_data(as_data(BATCHES)).notes == as_data(BATCHES).notes
    unlabelled = Data(BATCHES, BATCHES[:1], labelled=False)
    assert as_data(unlabelled) == unlabelled


def test_a_loader_of_dicts_is_still_shuffled_by_epoch():
    data = as_data(Samples())
    first = ids(data.train)
    data.train.sampler.set_epoch(1)
    assert ids(data.train) != first
    assert len(data.train) == 10


def test_bytes_are_scaled_and_it_is_said():
    whole = torch.from_numpy(numbered(40)).permute(0, 3, 1, 2)
    for source in (TensorDataset(whole), [(whole[:20],), (whole[20:],)]):
        data = as_data(source)
        assert all(batch[0].dtype == torch.float32 for batch in (*data.train, *data.holdout))
        assert [*{*ids(data.train), *ids(data.holdout)}] == list(range(40))
        assert sum("uint8" in note for note in data.notes) == 1
    assert not any("uint8" in note for note in as_data(BATCHES).notes)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (lambda y: torch.nn.functional.one_hot(y, 3), "multi-hot, int64 of shape (20, 3)"),
        (lambda y: y.float(), "float32 of shape (20,)"),
        (lambda y: [str(int(v)) for v in y], "list of str"),
    ],
)
def test_labels_that_are_not_used_are_named_once(labels, what):
    batches = [(x, labels(y)) for x, y in BATCHES]
    data = as_data({"train": batches, "test": batches})
    assert not data.labelled
    (note,) = [note for note in data.notes if "labels" in note]
    assert note.startswith(f"labels of train, test are not used: {what}")
    mixed = as_data({"train": BATCHES, "test": batches})
    (note,) = [note for note in mixed.notes if "labels" in note]
    assert note.startswith("labels of test are not used")
    assert not any("labels" in n for n in as_data(Data(batches, labelled=False)).notes)


# --- what can be read only once ----------------------------------------------------------------


ONCE = {
    "iterator": lambda: iter(BATCHES),
    "generator": lambda: (batch for batch in BATCHES),
    "map": lambda: map(tuple, BATCHES),
    "zip": lambda: zip([x for x, _ in BATCHES], [y for _, y in BATCHES], strict=True),
    "loader": lambda: iter(DataLoader(TensorDataset(X, Y), batch_size=20)),
}


@pytest.mark.parametrize("once", ONCE.values(), ids=ONCE)
def test_what_can_be_read_only_once_is_no_data(once):
    for how in ({"train": once()}, {"train": BATCHES, "test": once()}):
        split = [*how][-1]
        with pytest.raises(DataError, match=f"{split}: must be readable more than once") as caught:
            Data(**how)
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match=f"{split}: must be readable more than once"):
            as_data(how)
    with pytest.raises(DataError, match="holdout: must be readable"):
        Data(BATCHES, once())
    with pytest.raises(DataError, match="train: must be readable more than once"):
        as_data(once())


class Held:
    """Gives the same iterator to whoever asks."""

    def __init__(self):
        self.batches = iter(BATCHES)

    def __iter__(self):
        return self.batches


class Emptied:
    """Is empty when it is read again."""

    def __init__(self):
        self.batches = BATCHES[:1]

    def __iter__(self):
        while self.batches:
            yield self.batches.pop()


class Stream(IterableDataset):
    def __init__(self):
        self.samples = iter(X[:1])

    def __iter__(self):
        return self.samples


@pytest.mark.parametrize("made", [Held, Emptied, Stream])
def test_what_is_empty_the_second_time_is_refused(made):
    with pytest.raises(DataError, match=r"train: must be readable more than once, got .* empty"):
        as_data(made())


def test_what_holds_no_images_is_refused():
    for source, match in (
        (3, "got int"),
        ([], "got no batch"),
        ({"test": BATCHES}, "got only"),
        ({"train": BATCHES, "valid": BATCHES}, r"got \['valid'\] too"),
        ([Y], "with a batch axis"),
        (DataLoader([object()] * 4), "a loader failed: TypeError"),
    ):
        with pytest.raises(DataError, match=match) as caught:
            as_data(source)
        assert "\n" not in str(caught.value)
