import numpy as np
import pytest

from dfkd_jax.reporting import findings, run_files
from dfkd_jax.runtime import writers

NOISE = np.random.default_rng(1).normal(size=(100, 8, 8, 1))
DARK = -1.5  # Standardized; not so dark that pixels are clipped.
ONE_CLASS = "One class has most of the pseudo samples"
BLANK = "Many pseudo samples are blank"
TWINS = "Many pseudo samples are the same picture"
ALIKE = "Pseudo samples are all alike"


def titles(folder):
    return [finding.title for finding in findings.find(run_files.read(folder))]


def lone(folder):
    (finding,) = findings.find(run_files.read(folder))
    return finding


def test_nothing_is_wrong_with_a_good_run(maker):
    assert titles(maker.make(drawn=True)) == []


@pytest.mark.parametrize(
    ("share", "is_known", "expected"),
    [
        (0.97, True, []),
        (0.89, True, ["A poor student is to be expected"]),
        (0.97, False, ["A student of an unknown kind"]),
    ],
)
def test_what_is_expected_of_a_student_comes_first(maker, share, is_known, expected):
    told = {"agreement": share, "low": share - 0.02, "high": share + 0.01}
    told |= {"is_known": is_known, "is_poor": share < 0.9}
    folder = maker.make(changes={"expected": told}, accuracy=0.1)
    found = findings.find(run_files.read(folder))
    titles = [finding.title for finding in found]
    assert titles == [*expected, "Student hardly better than chance"]
    if expected:
        assert f"{100 * share:.0f} % ({100 * share - 2:.0f} to" in found[0].text


def test_baselines_on_real_data(maker):
    assert titles(maker.make(changes={"data_free": False})) == ["Not data-free"]
    what = {"data_free": False, "real_data": "200 training images of toys"}
    assert (
        "real data (200 training images of toys)"
        in lone(maker.make("few", kind="real_data", origin=what, changes=what)).text
    )


def test_methods_without_synthesis_do_not_miss_it(maker):
    folder = maker.make(kind="dafl", finished_shards=0, student=False, results=False)
    assert titles(folder) == ["No student yet"]


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.19, ["Student hardly better than chance"]), (0.21, [])],
)
def test_student_below_twice_chance(maker, accuracy, expected):
    assert titles(maker.make(accuracy=accuracy)) == expected


def test_teacher_of_another_task(maker):
    finding = lone(maker.make(teacher_accuracy=0.1))
    assert finding.title == "Teacher hardly better than chance"
    assert "10.00%" in finding.text


@pytest.mark.parametrize(
    ("num_classes", "threshold"), [(2, 0.75), (3, 2 / 3), (4, 0.5), (1_000, 0.002)]
)
def test_twice_chance_by_hand(num_classes, threshold):
    assert findings.chance_threshold(num_classes) == pytest.approx(threshold)


def test_classes_that_the_student_never_answers(maker):
    matrix = 100 * np.eye(10)
    matrix[[3, 7]] = np.roll(matrix, 1, axis=1)[[3, 7]]
    finding = lone(maker.make(student_confusion=matrix))
    assert finding.title == "Classes that the student never answers"
    assert "3, 7." in finding.text


def test_no_test_set(maker):
    finding = lone(maker.make(accuracy=None))
    assert finding.title == "Not evaluated"
    assert "test set toys was not available" in finding.text


def test_no_test_set_asked_for(maker):
    finding = lone(maker.make(accuracy=None, changes={"dataset": ""}))
    assert finding.title == "Not evaluated"
    assert "no test set is named" in finding.text


def test_unfinished_synthesis(maker):
    found = findings.find(
        run_files.read(maker.make(finished_shards=2, student=False, results=False))
    )
    assert [f.title for f in found] == ["Synthesis is not finished", "No student yet"]
    assert "50 of 100" in found[0].text


def test_a_run_that_has_just_begun(maker):
    folder = maker.make(finished_shards=0, student=False, results=False)
    for path in (folder / "transfer_set").iterdir():
        path.unlink()
    found = findings.find(run_files.read(folder))
    assert [f.title for f in found] == ["Synthesis is not finished", "No student yet"]
    assert "0 of 100" in found[0].text


def test_a_class_that_is_never_sampled(maker):
    soft = np.full((100, 10), 0.01)
    soft[np.arange(100), np.arange(100) % 9] = 0.91
    finding = lone(maker.make(soft=soft))
    assert finding.title == "Classes that are never sampled"
    assert "class: 9." in finding.text


def test_many_missing_classes_are_counted(maker):
    soft = np.full((100, 40), 0.001)
    soft[np.arange(100), np.arange(100) % 20] = 0.961
    finding = lone(maker.make(classes=40, soft=soft))
    assert "20, 21, 22" in finding.text
    assert "31 and 8 more." in finding.text


def test_soft_labels_that_are_alike(maker):
    """Every class is the likeliest of some, by a hair."""
    soft = np.full((100, 10), 0.1)
    soft += 0.01 * np.eye(10)[np.arange(100) % 10]
    assert titles(maker.make(soft=soft / soft.sum(1, keepdims=True))) == [
        "Soft labels are all alike"
    ]


@pytest.mark.parametrize(("share", "expected"), [(0.5, []), (0.6, [ONE_CLASS])])
def test_one_class_dominates_the_labels(maker, share, expected):
    soft = np.full((100, 10), 0.01)
    most = np.arange(100) < 100 * share
    soft[np.arange(100), np.where(most, 3, np.arange(100) % 10)] = 0.91
    folder = maker.make(soft=soft)
    assert titles(folder) == expected
    assert findings.of_transfer_set(folder) == findings.warnings(folder)
    for finding in findings.find(run_files.read(folder)):
        assert "3 is the likeliest class of 64% of the soft labels" in finding.text


def test_images_that_are_alike(maker):
    images = np.broadcast_to(np.linspace(-1, 1, 64).reshape(8, 8, 1), (100, 8, 8, 1))
    assert titles(maker.make(images=images)) == [TWINS, ALIKE]


def some(count, others):
    return np.where(np.arange(100)[:, None, None, None] < count, others, NOISE)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (some(10, DARK), []),
        (some(11, DARK), [BLANK]),
        (some(100, DARK), [BLANK, ALIKE]),
        (some(11, 0.5 + 0.01 * NOISE), [BLANK]),
        (some(45, DARK + 0.12 * NOISE), []),  # Dark, and still of use.
        (some(45, DARK + 0.07 * NOISE), [BLANK]),
        (0.15 * NOISE, []),  # A data set of little contrast.
        (some(25, NOISE[:1]), []),
        (some(26, NOISE[:1]), [TWINS]),
        (some(50, NOISE[:1] + 0.01 * NOISE), [TWINS]),
        (some(50, NOISE[:1] + 0.2 * NOISE), []),
    ],
)
def test_images_that_are_blank_or_the_same(maker, images, expected):
    folder = maker.make(images=images)
    assert titles(folder) == expected
    said = findings.of_transfer_set(folder)
    assert [text.split(".")[0] for text in said] == expected
    assert said == findings.warnings(folder)


UNREACHED = "Pseudo samples are not what their labels say"


@pytest.mark.parametrize(
    ("missed", "expected"),
    [(0.0, []), (0.65, []), (0.75, [UNREACHED]), (3, [UNREACHED])],
)
def test_images_in_which_the_teacher_does_not_find_their_labels(
    maker, missed, expected
):
    """By the part of what soft labels tell that its answers miss."""
    folder = maker.make()
    labels = run_files.read(folder).sample.labels
    reached = findings.entropy(labels).mean()
    lost = reached + missed * findings.information(labels)
    with writers.open_writer(folder / "metrics.jsonl", stage="synthesis") as writer:
        writer.write_scalars(100, {"cross_entropy": float(lost)})
    assert titles(folder) == expected
    for finding in findings.find(run_files.read(folder)):
        assert f"is {lost:.2f}; {reached:.2f} is what it can come" in finding.text


@pytest.mark.parametrize(
    ("weight", "activation", "expected"),
    [
        (0.05, -70.0, ["Activation loss outweighs the soft labels"]),
        (0.05, -7.0, []),
        (0.0, -70.0, []),
    ],
)
def test_an_activation_loss_that_outweighs_the_soft_labels(
    maker, weight, activation, expected
):
    folder = maker.make(settings={"synthesis": {"activation_weight": weight}})
    with writers.open_writer(folder / "metrics.jsonl", stage="synthesis") as writer:
        writer.write_scalars(75, {"activation": -700.0, "cross_entropy": 1.2})
        writer.write_scalars(100, {"activation": activation, "cross_entropy": 1.2})
    assert titles(folder) == expected
    assert len(findings.warnings(folder)) == len(expected)
    for finding in findings.find(run_files.read(folder)):
        assert "it is 3.50, their cross-entropy 1.20" in finding.text
        assert "config.synthesis.activation_weight=0.005" in finding.text


def test_damaged_files(maker):
    folder = maker.make()
    for shard in range(4):
        (folder / "transfer_set" / f"images-0000{shard}.npy").write_bytes(b"")
    (folder / "soft_labels.npz").write_bytes(b"")
    finding = lone(folder)
    assert finding.title == "Damaged files"
    assert "images-00002.npy" in finding.text
    assert "and 2 more" in finding.text


def test_information_by_hand():
    sure = np.eye(4)
    assert findings.information(sure) == pytest.approx(np.log(4))
    assert findings.information(np.full((5, 4), 0.25)) == pytest.approx(0)
    np.testing.assert_allclose(findings.entropy(np.array([0.5, 0.5, 0])), np.log(2))


def test_degenerate_results_are_warned_about(maker):
    soft = np.full((100, 10), 0.01)
    soft[:, 3] = 0.91
    folder = maker.make(accuracy=0.11, soft=soft)
    first, *others = findings.warnings(folder)
    assert first.startswith("Student hardly better than chance. It is right on 11.00%")
    assert any(text.startswith("Classes that are never sampled") for text in others)
    assert any(text.startswith("Soft labels are all alike") for text in others)


def test_no_warning_without_a_reason(maker):
    assert findings.warnings(maker.make("good", drawn=True)) == []
    assert findings.warnings(maker.make("not evaluated", accuracy=None)) == []
