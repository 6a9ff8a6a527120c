"""What `doctor` says of this thread's needs."""

from coopcyl import doctor
from coopcyl.geometry import rig
from loom.doctor import run_checks


def test_this_installation_is_sound():
    levels = {each.name: each.finding.level for each in run_checks(doctor.checks())}
    assert levels.keys() == {"checkout", "panorama", "extras"}
    assert "fail" not in levels.values()


def test_another_checkout_is_named(tmp_path, monkeypatch):
    place = tmp_path / "packages" / "coopcyl" / "src" / "coopcyl"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    finding = doctor.check_checkout()
    assert finding.level == "fail"
    assert str(tmp_path) in finding.detail


def test_cameras_that_look_elsewhere_are_noticed(monkeypatch):
    crooked = {**rig.OPV2V_CAMERAS, "camera1": (0.0, 0.3, 1.8, 0.0, 60.0, 0.0)}
    monkeypatch.setattr(rig, "OPV2V_CAMERAS", crooked)
    finding = doctor.check_panorama()
    assert finding.level == "fail"
    assert "0.857 follows" in finding.detail


def test_what_is_not_installed_is_named_with_its_use(monkeypatch):
    monkeypatch.setattr(doctor, "_EXTRAS", {"no_such_package": "--rerun"})
    assert doctor.check_extras().detail == "not installed: no_such_package (--rerun)"
