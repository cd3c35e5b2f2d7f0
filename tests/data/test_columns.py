"""Which columns are read, and what the classes are."""

import datasets
import pytest
from tables import IMAGE, NAMED, encoded, load, write_images, write_parquet, write_table


@pytest.mark.parametrize(
    "feature, values, names, labels",
    [
        (NAMED, [0, 1, 1, 0], ("a", "b"), [0, 1, 1, 0]),
        (datasets.Value("int64"), [3, 9 * 10**18] * 2, ("3", str(9 * 10**18)), [0, 1, 0, 1]),
        (datasets.Value("int64"), [200000, 90, 90, 90], ("90", "200000"), [1, 0, 0, 0]),
        (datasets.Value("string"), ["a", "NA"] * 2, ("NA", "a"), [1, 0, 1, 0]),
        # Numbers go by their size, and an accent is the same in both of its Unicode forms.
        (datasets.Value("string"), ["10", "2", "0", "1"], ("0", "1", "2", "10"), [3, 2, 0, 1]),
        (datasets.Value("string"), ["caf\u00e9", "cafe\u0301"] * 2, ("caf\u00e9",), [0] * 4),
        (datasets.Value("bool"), [True, False, False, True], ("False", "True"), [1, 0, 0, 1]),
    ],
)
def test_classes_are_the_values_that_occur(tmp_path, feature, values, names, labels):
    data = load(write_table(tmp_path / "d", values, feature))
    assert data.class_names == names and data.labels.tolist() == labels


def test_splits_agree_on_names_that_only_one_of_them_has(tmp_path):
    for split, values in (("train", "abcd"), ("test", "cccc")):
        write_table(tmp_path / "d", list(values), datasets.Value("string"), split)
    test = load(tmp_path / "d", split="test")
    assert test.class_names == tuple("abcd") and test.labels.tolist() == [2] * 4


def test_columns_are_found_by_type_or_named(tmp_path):
    columns = {"image": encoded(), "mask": encoded(), "fine": [0] * 4, "coarse": [1] * 4}
    features = {"image": IMAGE, "mask": IMAGE, "fine": NAMED, "coarse": NAMED}
    columns, features = columns | {"x": [0.5] * 4}, features | {"x": datasets.Value("float64")}
    name = write_parquet(tmp_path / "d", columns, features)
    with pytest.raises(ValueError, match=r"image_column: found 2 .*image \(Image\), mask"):
        load(name)
    with pytest.raises(ValueError, match=r'label_column: found 2 columns of labels.*, or "none"'):
        load(name, image_column="image")
    with pytest.raises(ValueError, match="image_column: there is no column 'img'"):
        load(name, image_column="img")
    with pytest.raises(ValueError, match=r"'x' is not a column of classes.*x \(float64\)"):
        load(name, image_column="image", label_column="x")
    with pytest.raises(ValueError, match="image_column: 'fine' is not a column of images or of"):
        load(name, image_column="fine")
    assert load(name, image_column="image", label_column="coarse").labels.tolist() == [1] * 4
    assert load(name, image_column="image", label_column="none").class_names == ()


@pytest.mark.parametrize("place", [{"part": 1, "of": 2}, {"split": "validation"}])
def test_files_that_number_their_classes_differently(tmp_path, place):
    """`datasets` gives the names of the first file to the numbers of all."""
    columns = {"image": encoded(2), "label": [0, 1]}
    for names, where in ((["cat", "dog"], {"of": 2}), (["dog", "cat"], place)):
        features = {"image": IMAGE, "label": datasets.ClassLabel(names=names)}
        write_parquet(tmp_path / "d", columns, features, **where)
    with pytest.raises(ValueError, match=r"label_column: .*'label' are cat, dog in .*, and dog, c"):
        load(tmp_path / "d")
    assert load(tmp_path / "d", label_column="none").class_names == ()


@pytest.mark.parametrize(
    "feature, bad, what",
    [
        (NAMED, -1, "the label -1 in"),
        (datasets.Value("int64"), None, "no label in"),
        (datasets.Value("string"), None, "no label in column 'label'; an image in"),
        (datasets.Value("string"), " ", "the label ' ' in"),
    ],
)
def test_a_label_that_is_no_class_is_located(tmp_path, feature, bad, what):
    good = "x" if feature == datasets.Value("string") else 0
    name = write_table(tmp_path / "d", [good, good, bad, good], feature)
    with pytest.raises(ValueError, match=f"label_column: row 2 of 'train' has {what}"):
        load(name)


def test_names_that_are_empty_or_differ_in_blanks_or_capitals(tmp_path):
    with pytest.raises(ValueError, match="label_column: a class has an empty name"):
        load(write_table(tmp_path / "e", [0, 1], datasets.ClassLabel(names=["", "Cat", "cat"])))
    message = "label_column: the classes 'Cat ' and 'cat' differ in nothing but blanks or capitals"
    with pytest.raises(ValueError, match=message):
        load(write_table(tmp_path / "d", ["Cat ", "cat"], datasets.Value("string")))
    with pytest.raises(ValueError, match=message):
        load(write_images(tmp_path / "f", "Cat /1.png", "cat/1.png"))
    write_images(tmp_path / "letters", "a/1.png", "A/1.png")  # not words: letters are classes
    assert load(tmp_path / "letters").class_names == ("A", "a")
