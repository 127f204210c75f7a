from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings import Settings, load_settings
from scripts.settings_reference import reference

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, text: str) -> Path:
    file = folder / "manta.yaml"
    file.write_text(text)
    return file


def test_event_weights_are_numbers_or_functions_of_the_value_and_written_as_they_were_given(tmp_path: Path) -> None:
    text = "surfaces: {home: {event_weights: {view: {log1p: true, min_s: 3, cap_s: 300}, click: 2}}}"
    found = load_settings(write(tmp_path, text), {"MANTA_LEARN__EVENT_WEIGHTS": "{rating: {min: 4}}"})
    weights = found.surfaces["home"].event_weights
    assert (weights["click"].of(float("nan")), weights["view"].of(2.5), weights["view"].of(float("nan"))) == (2, 0, 1)
    plain = found.model_dump(mode="json")
    assert plain["surfaces"]["home"]["event_weights"] == {
        "view": {"log1p": True, "min_s": 3.0, "cap_s": 300.0},
        "click": 2.0,
    }
    assert plain["learn"]["event_weights"] == {"rating": {"min": 4.0}}
    assert Settings.model_validate(plain) == found == Settings.model_validate_json(found.model_dump_json())


def test_environment_over_file_over_default(tmp_path: Path) -> None:
    file = write(tmp_path, "http: {port: 8001}\nkafka: {partitions: 2}\n")
    settings = load_settings(file, {"MANTA_HTTP__PORT": "8002", "MANTA_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9092"})
    assert (settings.http.port, settings.kafka.partitions, settings.http.host) == (8002, 2, "127.0.0.1")
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"


def test_a_surface_can_be_changed_from_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "surfaces: {home: {k: 5}, related: {anchor: required}}\n")
    settings = load_settings(file, {"MANTA_SURFACES__HOME__TIMEOUT_MS": "50"})
    assert settings.surfaces["home"].timeout_ms == 50
    assert settings.surfaces["home"].k == 5
    assert settings.default_surface == "home"


@pytest.mark.parametrize(
    ("text", "environ", "named"),
    [
        ("htpp: {port: 1}", {}, ["manta.yaml", "htpp", "no such key"]),
        ("http: {port: eight}", {}, ["manta.yaml", "http.port", "'eight'", "integer"]),
        ("http: {port: 0}", {}, ["http.port", "greater than or equal to 1"]),
        ("http: {host: 0.0.0.0}", {}, ["http", "0.0.0.0", "http.open"]),
        ("http: [1]", {}, ["manta.yaml", "http", "[1]"]),
        ("- a", {}, ["manta.yaml", "mapping"]),
        ("a: {", {}, ["manta.yaml", "readable YAML"]),
        ("surfaces: {}", {}, ["surfaces"]),
        ("{}", {"MANTA_HTTP__PROT": "1"}, ["environment", "MANTA_HTTP__PROT", "no such key"]),
        ("{}", {"MANTA_NOPE": "1"}, ["environment", "MANTA_NOPE", "no such key"]),
        ("{}", {"MANTA_HTTP__PORT": "x"}, ["environment", "MANTA_HTTP__PORT", "'x'"]),
        ("http: {port: true}", {}, ["http.port", "True", "number"]),
        ("{}", {"MANTA_STATE__TTL_DAYS": "yes"}, ["environment", "MANTA_STATE__TTL_DAYS", "True", "number"]),
        ("stats: {trending_hours: [true, 2]}", {}, ["stats.trending_hours", "number"]),
        ("surfaces: {home: {k: on}}", {}, ["surfaces.home.k", "True", "number"]),
        ("surfaces: {home: {event_weights: {click: true}}}", {}, ["surfaces.home.event_weights", "number"]),
        ("surfaces: {home: {event_weights: {view: {log1q: true}}}}", {}, ["event_weights.view.log1q", "no such key"]),
        (
            "surfaces: {home: {event_weights: {view: {min_s: -1}}}}",
            {},
            ["event_weights.view.min_s", "-1", "equal to 0"],
        ),
        ("surfaces: {home: {event_weights: {view: {cap_s: 9}}}}", {}, ["event_weights.view:", "wanted log1p: true or"]),
        ("learn: {event_weights: {view: {log1p: true, linear: true}}}", {}, ["wanted log1p or linear, not both"]),
        ("learn: {event_weights: {view: {min: 1, min_s: 2}}}", {}, ["learn.event_weights.view:", "wanted min_s and"]),
        (
            "learn: {event_weights: {view: {log1p: true, min_s: 9, cap_s: 3}}}",
            {},
            ["wanted a cap not below the minimum 9"],
        ),
        (
            "learn: {event_weights: {view: {missing: 1}}}",
            {},
            ["view:", "wanted log1p, linear, min or min_s with missing"],
        ),
        ("learn: {event_weights: {click: -1}}", {}, ["learn.event_weights.click", "-1", "equal to 0"]),
        ("learn: {event_weights: {click: .nan}}", {}, ["learn.event_weights.click", "nan", "finite number"]),
        ("learn: {event_weights: {click: [1]}}", {}, ["learn.event_weights.click", "[1]", "number"]),
        ("learn: {event_weights: 1}", {}, ["learn.event_weights", "found 1", "dictionary"]),
        ("kafka: {max_in_flight_events: 1999}", {}, ["kafka.max_in_flight_events", "1999", "2000"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, environ: dict[str, str], named: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text), environ)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "absent.yaml", {})


def test_the_demo_settings_are_valid_and_its_surfaces_are_those_of_the_contract() -> None:
    settings = load_settings(ROOT / "manta.yaml", {})
    topologies = {name: surface.topology for name, surface in settings.surfaces.items()}
    assert topologies == {"home": "colocated", "related": "distributed", "trending": "colocated"}
    assert settings.surfaces["related"].anchor == "required"


def test_the_settings_page_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == reference(), (
        "python -m scripts.settings_reference > docs/settings.md"
    )
