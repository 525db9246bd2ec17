"""The table of numbers as text."""

from scanfield.tasks.table import Column, Row, Table


def table():
    columns = [
        Column("held_out", "held-out residual", "1", "lower", note="on views no row has seen", digits=4),
        Column("seconds", "time", "s", "", digits=1),
        Column("psnr", "PSNR vs reference", "dB", "higher"),
        Column("ssim", "SSIM vs reference", "1", "higher", digits=3),
    ]
    rows = [
        Row("scope", "SCOPE", "method", {"held_out": 0.01, "seconds": 12.34, "psnr": 31.2, "ssim": 0.9}),
        Row("fbp", "FBP", "baseline", {"held_out": 0.0345, "psnr": 25.0, "ssim": 0.95}),
    ]
    return Table(columns, rows)


def test_columns_of_one_reference_share_a_heading_and_the_best_is_starred():
    assert table().to_text().split("\n") == [
        "       held-out              ── vs reference ─",
        "       residual   time [s]   PSNR [dB]    SSIM",
        "SCOPE    0.0100*      12.3       31.20*  0.900",
        "FBP      0.0345          -       25.00   0.950*",
        "",
        "held-out residual: on views no row has seen",
    ]


def test_a_note_of_several_columns_is_said_once():
    note = "between surfaces, mm"
    columns = [Column(name, name, "mm", "", note=text) for name, text in (("HD95", note), ("Dice", ""), ("ASSD", note))]
    assert Table(columns, [Row("a", "A", "method", {})]).to_text().split("\n")[-1] == "HD95, ASSD: between surfaces, mm"


def test_columns_are_added_once():
    numbers = table()
    numbers.add_column(Column("psnr", "PSNR vs reference", "dB", "higher"))
    assert [column.key for column in numbers.columns] == ["held_out", "seconds", "psnr", "ssim"]


def test_an_empty_table_is_no_text():
    assert Table([], []).to_text() == ""
