from __future__ import annotations

from scanfield.errors import InputError, MissingExtra, ScanfieldError, nearest


def test_an_input_error_says_what_where_and_how():
    error = InputError("too short", where="scan.npz", fix="give more")
    assert (error.what, error.where, error.fix, error.exit_code) == ("too short", "scan.npz", "give more", 2)
    assert str(error).splitlines() == ["too short", "  where: scan.npz", "  fix:   give more"]
    assert str(InputError("too short")) == "too short"
    assert isinstance(error, ScanfieldError) and ScanfieldError.exit_code == 1


def test_missing_extra_names_the_command():
    error = MissingExtra("pydicom", "dicom", "reading DICOM")
    assert "pydicom" in error.what and error.fix == "pip install 'scanfield[dicom]'"


def test_nearest():
    assert nearest("scop", ["siren", "scope"]) == " (did you mean 'scope'?)"
    assert nearest("xyzzy", ["siren", "scope"]) == "" and nearest("a", []) == ""
