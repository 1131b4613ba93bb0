from __future__ import annotations

import asyncio
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyderp.server.site.metrics import exposition, metrics_text
from pyderp.server.site.metrics_derper import Series
from pyderp.server.site.view import RelayView

from .world import bare, client, full


def scrape(view: RelayView) -> str:
    return asyncio.run(metrics_text(view)).decode()


def types(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def test_prometheus_can_parse_a_scrape_completely() -> None:
    text = scrape(full())
    families = list(text_string_to_metric_families(text))
    assert len(families) == len(types(text))
    # Prometheus's parser adds "_total" to the name of every counter.
    samples = {s.name.removesuffix("_total") for family in families for s in family.samples}
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert {re.split(r"[{ ]", line)[0].removesuffix("_total") for line in lines} == samples
    assert text.endswith("\n")


def test_a_scrape_has_the_metrics_of_relay_and_process() -> None:
    text = scrape(bare())
    assert types(text)["derp_accepts"] == "counter"
    assert types(text)["process_cpu_seconds_total"] == "counter"
    assert types(text)["process_resident_memory_bytes"] == "gauge"


def test_every_metric_occurs_once() -> None:
    text = scrape(full())
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_names_of_counters_get_no_suffix() -> None:
    view = bare()
    view.router.counters.derp_accepts = 5
    text = scrape(view)
    assert "# TYPE derp_accepts counter\nderp_accepts 5\n" in text
    assert "derp_accepts_total" not in text


def test_large_counters_keep_all_digits() -> None:
    view = bare()
    view.router.counters.bytes_sent = 2**60 + 1
    assert f"\nderp_bytes_sent {2**60 + 1}\n" in scrape(view)


def test_the_gauge_prefix_is_removed() -> None:
    view = bare()
    view.router.login(client())
    text = scrape(view)
    assert "# TYPE derp_current_connections gauge\nderp_current_connections 1\n" in text


def test_drops_have_both_labels() -> None:
    assert '\nderp_packets_dropped{reason="queue_head",kind="disco"} 0\n' in scrape(bare())


def test_histograms_are_cumulative() -> None:
    view = bare()
    counters = view.router.counters
    for frames in (0, 3, 15, 16, 101, 200):
        counters.wrote(frames)
    text = scrape(view)
    assert types(text)["derp_buffered_write_frames"] == "histogram"
    for bound, count in (("0", 1), ("2", 1), ("3", 2), ("15", 3), ("20", 4), ("100", 4)):
        assert f'\nderp_buffered_write_frames_bucket{{le="{bound}"}} {count}\n' in text
    assert '\nderp_buffered_write_frames_bucket{le="+Inf"} 6\n' in text
    assert "\nderp_buffered_write_frames_sum 335\n" in text
    assert "\nderp_buffered_write_frames_count 6\n" in text


def test_the_version_is_a_label() -> None:
    assert '\nversion{version="1.2.3",binary="pyderp"} 1\n' in scrape(bare())


def test_a_metric_without_samples_still_has_a_type() -> None:
    assert types(scrape(bare()))["derp_tcp_rtt"] == "counter"


def test_a_metric_without_a_type_is_untyped() -> None:
    assert types(scrape(bare()))["derp_average_queue_duration_ms"] == "untyped"


def test_text_is_escaped() -> None:
    metric = Series("gauge_x", "a\\b\nc", {('a\\b\n"c"',): 1.5}, ("l",))
    assert exposition([metric]) == (
        b'# HELP x a\\\\b\\nc\n# TYPE x gauge\nx{l="a\\\\b\\n\\"c\\""} 1.5\n'
    )
    (family,) = text_string_to_metric_families(exposition([metric]).decode())
    assert family.samples[0].labels == {"l": 'a\\b\n"c"'}


def test_without_proc_some_process_metrics_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("pyderp.server.site.metrics.open", missing, raising=False)
    text = scrape(bare())
    assert "process_cpu_seconds_total" not in text
    assert "process_virtual_memory_max_bytes" in text


def test_without_byte_counts_of_the_system_there_are_no_network_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyderp.server.site.metrics.network_bytes", lambda: None)
    text = scrape(bare())
    assert "process_network" not in text
    assert "process_virtual_memory_max_bytes" in text
