"""Pictures from files, whole and damaged, and files that would do harm."""

import gzip
import pathlib
import pickle

import pytest
import torch

from flowkernels.train import data, pictures
from flowkernels.train.errors import CommandError


def idx(images):
    sizes = b"".join(n.to_bytes(4, "big") for n in images.shape)
    return bytes((0, 0, 8, images.dim())) + sizes + bytes(images.flatten().tolist())


def test_digits_are_split_for_good():
    pytest.importorskip("sklearn")
    one, other = data.load("digits"), data.load("digits")
    assert one.train.shape == (1498, 1, 8, 8)
    assert one.held_out.shape == (299, 1, 8, 8)
    assert torch.equal(one.held_out, other.held_out)
    assert one.train.dtype == torch.uint8
    assert one.train.max() == one.levels - 1 == 16
    assert one.shape == (1, 8, 8)
    with pytest.raises(CommandError, match="--data-dir means nothing for digits"):
        data.load("digits", "/tmp")


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path, zipped):
    images = {n: torch.randint(256, (r, 28, 28)) for n, r in (("train", 5), ("t10k", 3))}
    for name, values in images.items():
        path = tmp_path / f"{name}-images-idx3-ubyte"
        content = idx(values)
        if zipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)
    known = data.load("fashion-mnist", str(tmp_path))
    assert torch.equal(known.train[:, 0], images["train"].to(torch.uint8))
    assert torch.equal(known.held_out[:, 0], images["t10k"].to(torch.uint8))
    assert known.shape == (1, 28, 28)
    assert known.levels == 256


def test_missing_files_name_the_package(tmp_path):
    with pytest.raises(CommandError, match=f"{tmp_path}: install Debian's package dataset-fashion-mnist"):
        data.load("fashion-mnist", str(tmp_path))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"hello, world")
    with pytest.raises(CommandError, match="train-images-idx3-ubyte is not an IDX file"):
        pictures.read_idx(tmp_path, path.name)
    path.write_bytes(idx(torch.zeros(2, 3, 4, dtype=torch.uint8))[:-1])
    with pytest.raises(CommandError, match="should hold 24 pixels; it holds 23"):
        pictures.read_idx(tmp_path, path.name)
    path.unlink()
    whole = gzip.compress(idx(torch.zeros(2, 3, 4, dtype=torch.uint8)))
    for content in (b"\x1f\x8b not gzip", whole[:-9]):
        (tmp_path / f"{path.name}.gz").write_bytes(content)
        with pytest.raises(CommandError, match="cannot be read"):
            pictures.read_idx(tmp_path, path.name)


def test_training_and_test_images_of_two_sizes_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(torch.zeros(2, 3, 4, dtype=torch.uint8)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(torch.zeros(2, 4, 4, dtype=torch.uint8)))
    with pytest.raises(CommandError, match="differ in size: 3x4 and 4x4"):
        data.load("mnist", str(tmp_path))


BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def python2_pickle(images):
    """The bytes of a batch as Python 2 wrote it, protocol 2: a short string for a name, a long one for the pixels."""
    name = lambda text: b"U" + bytes([len(text)]) + text.encode()  # noqa: E731  SHORT_BINSTRING
    content = images.numpy().tobytes()
    pixels = b"T" + len(content).to_bytes(4, "little") + content  # BINSTRING
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + name("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + name("u1") + b"K\x00K\x01\x87R" + b"(K\x03" + name("|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(images)]) + b"M\x00\x0c\x86"
    state = b"(K\x01" + shape + dtype + b"\x89" + pixels + b"tb"
    return b"\x80\x02}(" + name("data") + array + state + name("labels") + b"]u."


@pytest.mark.parametrize("version", ["C", "Python 2", "Python 3"])
def test_the_versions_of_cifar(tmp_path, version):
    images = {name: torch.randint(256, (3, 3072), dtype=torch.uint8) for name in BATCHES}
    for name, values in images.items():
        labelled = torch.cat((torch.zeros(3, 1, dtype=torch.uint8), values), 1)
        if version == "C":
            (tmp_path / f"{name}.bin").write_bytes(labelled.numpy().tobytes())
        elif version == "Python 2":
            assert (pickle.loads(python2_pickle(values), encoding="bytes")[b"data"] == values.numpy()).all()
            (tmp_path / name).write_bytes(python2_pickle(values))
        else:
            (tmp_path / name).write_bytes(pickle.dumps({"data": values.numpy(), "labels": [1, 2, 3]}))
    known = data.load("cifar10", str(tmp_path))
    assert known.train.shape == (15, 3, 32, 32)
    assert torch.equal(known.train.flatten(1), torch.cat([images[name] for name in BATCHES[:-1]]))
    assert torch.equal(known.held_out.flatten(1), images["test_batch"])


class Harmful:
    """Calls `function` when a pickle of it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [pathlib.Path.touch, eval, pathlib.os.system])
def test_a_pickle_that_would_do_harm_is_refused_and_not_executed(tmp_path, function):
    trace = tmp_path / "trace"
    does = {eval: f"open({str(trace)!r}, 'w').close()", pathlib.os.system: f"touch {trace}"}.get(function, trace)
    content = pickle.dumps({"data": Harmful(function, does)})
    pickle.loads(content)
    assert trace.exists()  # it does what it is here for
    trace.unlink()
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(CommandError, match=r"has no use for .*: refusing to read the pickle"):
        pictures._cifar_pickle(tmp_path / "data_batch_1")
    assert not trace.exists()


def test_damaged_batches_of_cifar_are_named(tmp_path):
    path = tmp_path / "data_batch_1"
    images = torch.randint(256, (3, 3072), dtype=torch.uint8)
    whole = python2_pickle(images)
    narrow, wide = (pickle.dumps({"data": values.numpy()}) for values in (images[:, 1:], images.float()))
    for content in (whole[:-1000], whole[:5], b"", b"text", pickle.dumps([1]), pickle.dumps({"data": None})):
        path.write_bytes(content)
        with pytest.raises(CommandError, match=f"{path} cannot be read as a batch of CIFAR-10"):
            pictures._cifar_pickle(path)
    for content in (narrow, wide):
        path.write_bytes(content)
        with pytest.raises(CommandError, match=f"{path} should hold rows of 3072 bytes"):
            pictures._cifar_pickle(path)
    path.write_bytes(whole)
    with pytest.raises(CommandError, match="data_batch_2 is missing"):
        data.load("cifar10", str(tmp_path))
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3072))
    with pytest.raises(CommandError, match="records of 3073 bytes; it holds 3072"):
        data.load("cifar10", str(tmp_path))


def test_without_cifar_the_error_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(CommandError, match=f"{tmp_path}: unpack cifar-10-python.tar.gz"):
        data.load("cifar10", str(tmp_path))


def write_image(path, values):
    numpy = values.squeeze(-1).numpy()
    if path.suffix == ".npy":
        pytest.importorskip("numpy").save(path, numpy)
    else:
        pytest.importorskip("PIL.Image").fromarray(numpy).save(path)


@pytest.mark.parametrize("suffix", [".png", ".npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images(tmp_path, suffix, channels):
    images = torch.randint(256, (7, 4, 5, channels), dtype=torch.uint8)
    (tmp_path / "below").mkdir()
    for number, values in enumerate(images):
        write_image(tmp_path / "below" / f"{number}{suffix}", values)
    (tmp_path / "notes.txt").write_text("not an image")
    known = data.load(str(tmp_path))
    assert known.shape == (channels, 4, 5)
    assert torch.equal(known.held_out, images[5:6].permute(0, 3, 1, 2))
    assert torch.equal(known.train, images[[0, 1, 2, 3, 4, 6]].permute(0, 3, 1, 2))


def test_images_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(CommandError, match=r"at least 6 images .* it holds 0"):
        data.load(str(tmp_path))
    for number in range(6):
        write_image(tmp_path / f"{number}.png", torch.zeros(4, 5, 1, dtype=torch.uint8))
    other = tmp_path / "6.png"
    write_image(other, torch.zeros(4, 5, 3, dtype=torch.uint8))
    with pytest.raises(CommandError, match=r"0.png is 5x4 with 1 channel, .*6.png 5x4 with 3 channels"):
        data.load(str(tmp_path))
    write_image(other, torch.zeros(5, 5, 1, dtype=torch.uint8))
    with pytest.raises(CommandError, match=r"0.png is 5x4 with 1 channel, .*6.png 5x5 with 1 channel"):
        data.load(str(tmp_path))
    other.write_bytes(other.read_bytes()[:-30])
    with pytest.raises(CommandError, match=r"6.png cannot be read as an image"):
        data.load(str(tmp_path))


def test_arrays_that_are_no_images_are_named_and_pickles_in_them_refused(tmp_path):
    numpy = pytest.importorskip("numpy")
    trace, path = tmp_path / "trace", tmp_path / "0.npy"
    for number in range(6):
        write_image(tmp_path / f"{number}.npy", torch.zeros(4, 5, 1, dtype=torch.uint8))
    numpy.save(path, numpy.zeros((4, 5)))
    with pytest.raises(CommandError, match=r"0.npy should hold bytes .* it holds float64 of shape \(4, 5\)"):
        data.load(str(tmp_path))
    numpy.save(path, numpy.array([Harmful(pathlib.Path.touch, trace)], dtype=object), allow_pickle=True)
    with pytest.raises(CommandError, match=r"0.npy cannot be read as an image"):
        data.load(str(tmp_path))
    assert not trace.exists()
