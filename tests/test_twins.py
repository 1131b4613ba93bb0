"""Each test that Go has of its relay has a twin here, and what Go does not test has a test.

The tables are facts about Go's tests of `derper` v1.102.3 and v1.104.7; a test that is renamed or
removed here makes this fail. A Go scenario, which plays against Go's relay and ours, counts as
`test_scenario`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent

TWINS: Final[Mapping[str, tuple[str, ...]]] = {
    # derp/derpserver
    "TestSetMeshKey": (
        "test_keys.py::test_mesh_key_in_any_case_and_with_space_around",
        "test_keys.py::test_no_mesh_key",
        "cli/relay/test_refusals.py::test_a_bad_mesh_key_is_refused_and_not_quoted",
    ),
    "TestIsMeshPeer": ("server/conn/test_protocol.py::test_only_the_mesh_key_grants_mesh_rights",),
    "TestForwarderRegistration": ("relay/registry/test_forwarders.py::TestRegistration",),
    "TestMultiForwarder": (
        "relay/registry/test_forwarders.py"
        "::test_each_of_5000_packets_reaches_one_forwarder_while_they_come_and_go",
    ),
    "TestMetaCert": ("wire/test_metacert.py::test_the_certificate_has_the_fields_of_go",),
    "TestModifyTLSConfigToAddMetaCert": (
        "server/conn/test_meta_chain.py"
        "::test_a_hundred_handshakes_present_the_same_two_certificates",
    ),
    "TestServerDupClients/one_comes_and_goes": (
        "relay/test_registry.py::TestDuplicates::test_one_comes_and_goes",
    ),
    "TestServerDupClients/small_overlap_replacement": (
        "relay/test_registry.py::TestDuplicates::test_small_overlap_replacement",
    ),
    "TestServerDupClients/concurrent_dups_three_parties_last_writer": (
        "relay/test_registry.py::TestDuplicates::test_concurrent_dups_three_parties_last_writer",
        "relay/test_registry.py::test_takeovers_are_those_of_go_for_any_sequence_of_events",
    ),
    "TestLimiter": ("test_throttle.py::test_never_more_than_burst_and_rate_and_never_less",),
    # Bytes come from TCP_INFO instead of from `ss`.
    "TestParseSSOutput": (
        "server/conn/test_kernel.py::test_the_kernel_counts_the_bytes_of_a_connection",
    ),
    # A set counts exactly what Go estimates.
    "TestServeDebugTrafficUniqueSenders": (
        "server/site/test_traffic.py::test_unique_senders_are_exact",
    ),
    "TestSenderCardinality": ("server/site/test_traffic.py::test_unique_senders_are_exact",),
    "TestSenderCardinality100": ("server/site/test_traffic.py::test_unique_senders_are_exact",),
    "TestSenderCardinalityTracking": (
        "relay/test_registry.py::TestMemory::test_a_source_is_remembered_once_on_both_sides",
    ),
    "TestPerClientRateLimit/throttled": (
        "server/conn/test_limits.py::test_the_burst_passes_and_what_exceeds_it_waits",
    ),
    "TestPerClientRateLimit/context_canceled": (
        "server/conn/test_limits.py::test_a_client_that_leaves_while_waiting_leaves_no_timer",
    ),
    "TestPerClientRateLimit/mesh_peer_exempt": (
        "server/conn/test_limits.py::test_mesh_peers_have_no_limit",
    ),
    "TestPerClientRateLimit/zero_config_no_limiter": (
        "server/conn/test_limits.py::test_without_a_limit_reads_go_to_the_lane_directly",
        "relay/test_limits.py::test_without_a_rate_there_is_no_limit",
    ),
    # What exceeds the burst goes into debt and waits, where Go's limiter refuses it.
    "TestRateLimitWait": (
        "relay/test_limits.py::test_the_burst_is_free_and_what_exceeds_it_waits_for_its_rate",
        "server/conn/test_limits.py::test_a_client_that_leaves_while_waiting_leaves_no_timer",
    ),
    "TestUpdateRateLimits": (
        "server/conn/test_limits.py::test_a_new_limit_starts_with_a_full_bucket_and_ends_a_wait",
        "server/conn/test_limits.py::test_removing_the_limit_ends_a_wait",
        "server/conn/test_limits.py::test_mesh_peers_have_no_limit",
        "server/conn/test_limits.py::test_all_connections_of_a_key_share_one_bucket_and_get_new_limits",
    ),
    "TestLoadRateConfig": (
        "relay/test_limits.py::test_rate_and_burst_are_read",
        "relay/test_limits.py::test_a_rate_alone_has_the_minimum_burst",
        "relay/test_limits.py::test_anything_but_a_json_object_is_refused",
        "server/conn/test_limits.py::test_an_invalid_file_at_the_start_is_a_config_error",
    ),
    "TestLoadAndApplyRateConfig": (
        "interop/test_rate_limits.py::test_packets_above_the_burst_come_at_the_rate",
        "relay/test_limits.py::test_a_small_burst_is_raised",
        "server/conn/test_limits.py::test_an_invalid_file_is_logged_and_the_limits_stay",
    ),
    "TestLookupDestHashTrieFastPath": (
        "server/mesh/test_mesh.py::test_a_local_connection_is_preferred_to_a_remote_one",
    ),
    "TestLookupDestHashTrieFallsBackForForwarder": (
        "relay/registry/test_forwarders.py"
        "::TestRegistration::test_a_key_with_a_forwarder_is_reached_after_a_local_disconnect",
    ),
    # cmd/derper
    "TestNoContent": (
        "server/site/test_routes.py::test_a_challenge_is_echoed",
        "server/site/test_routes.py::test_other_challenges_are_not_echoed",
        "interop/server/test_pages.py::test_both_answer_alike",
    ),
    "TestTemplate": ("server/site/test_home.py::test_the_home_page_shows_each_option",),
    "TestUnpublishedDNS": (
        "server/services/test_bootstrap.py::test_published_and_unpublished_names_are_looked_up",
        "interop/test_bootstrap.py::test_answers_and_counters_are_those_of_derper",
    ),
    "TestUnpublishedDNSEmptyList/CacheMiss": (
        "relay/test_bootstrap.py"
        "::TestAnswers::test_an_unpublished_name_with_an_empty_list_is_a_miss",
        "relay/test_bootstrap.py::TestAnswers::test_an_unknown_name_is_a_miss",
    ),
    "TestUnpublishedDNSEmptyList/CacheHit": (
        "relay/test_bootstrap.py::TestAnswers::test_an_unpublished_name_is_answered_alone",
    ),
    "TestLookupMetric": (
        "relay/test_bootstrap.py::TestAnswers::test_each_queried_name_is_counted_once",
    ),
    "TestRemoteAddrMatchesPercent": ("relay/test_bootstrap.py::TestInPercentage",),
    "TestCertIP": (
        "certs/test_manual.py::test_an_existing_pair_of_an_address_is_kept",
        "certs/test_manual.py::test_the_certificate_of_an_address_is_served_for_every_name",
        "interop/server/test_manual_certificates.py::test_the_requested_name_selects_the_certificate",
    ),
    "TestPinnedCertRawIP": (
        "server/app/test_relay.py::test_an_address_gets_a_pinned_certificate",
        "interop/client/test_modes.py::test_packets_pass_both_ways",
        "interop/test_go_clients.py::test_wrong_pin_is_refused",
    ),
    "TestGCPCertMode": (
        "config/test_tls.py::test_googles_authority_needs_all_of_its_settings",
        "config/test_tls.py::test_an_eab_key_may_be_in_either_base64_alphabet",
        "config/test_tls.py::test_a_bad_eab_key_is_refused_and_not_quoted",
    ),
    "TestIPCertManager": (
        "certs/test_acme.py::test_a_connection_to_an_address_is_served_a_certificate_for_it",
        "certs/test_acme.py::test_a_restart_uses_the_certificate_on_disk",
        "server/site/test_routes.py::test_acme_challenges_are_answered_on_the_plain_listener",
        "interop/acme/test_pebble.py::test_an_address_gets_a_short_lived_certificate",
    ),
    "TestIPCertManagerNextProvider": (
        "certs/test_acme.py::test_a_name_and_addresses_have_their_own_certificates",
    ),
    "TestCertModeIPCertsGating": (
        "config/test_tls.py::test_an_address_needs_ip_certs_and_the_error_names_both_remedies",
        "config/test_tls.py::test_ip_certs_work_with_names_and_addresses",
        "cli/relay/test_refusals.py::test_flags_that_do_not_go_together_are_explained",
    ),
    # net/stunserver, net/stun
    "TestSTUNServer": (
        "server/services/test_stun.py::test_a_request_is_answered",
        "server/services/test_stun.py::test_closing_frees_the_port",
    ),
    "TestIs": ("wire/test_stun.py::test_stun_is_recognised",),
    "TestParseBindingRequest": ("wire/test_stun.py::TestRequest",),
    "TestResponse": ("wire/test_stun.py::TestPackResponse",),
    "TestParseResponse": ("wire/test_stun.py::TestParseResponse",),
    # derp
    "TestReadFrameHeader": (
        "wire/test_buffer.py::test_any_chunking_has_the_same_frames",
        "relay/test_lane.py::TestSkip::test_the_longest_unknown_frame_is_skipped_and_not_kept",
    ),
    "TestWriteFrameHeader": (
        "wire/test_frames.py::test_a_header_is_a_type_byte_and_four_bytes_of_length",
    ),
    "TestClientInfoUnmarshal": (
        "wire/test_login.py::test_valid_client_info_is_accepted",
        "wire/test_login.py::test_a_malformed_mesh_key_refuses_the_whole_blob",
    ),
    "TestSendRecv": (
        "client/test_with_relay.py::TestRelay::test_send_and_receive",
        "interop/client/test_messages.py::test_packets_reach_their_destination_only",
        "relay/test_router.py::TestNotHere",
        "relay/test_router.py::TestHome",
        "relay/router/test_departures.py"
        "::TestPeerGone::test_only_clients_that_received_from_it_get_peer_gone",
        # New in v1.104.7: what `/debug/clients/` counts.
        "relay/test_connection_counts.py"
        "::test_a_run_counts_for_the_sender_at_once_and_for_the_destination_when_written",
        "interop/server/test_debug_clients.py::test_json_is_the_same_byte_by_byte",
    ),
    "TestSendFreeze": (
        "relay/delivery/test_queues.py::test_a_stalled_client_does_not_delay_others",
        "fault/test_stalled.py::test_a_stalled_reader_costs_its_sender_and_others_nothing",
    ),
    "TestWatch": ("relay/router/test_mesh.py::TestWatch", "interop/go/mesh.go::watchers"),
    "TestServerRepliesToPing": (
        "relay/test_router.py::TestPing::test_a_pong_has_the_first_eight_bytes_of_the_ping",
    ),
    # derp/derphttp
    "TestPing": ("client/test_with_relay.py::TestRelay::test_ping",),
    "TestProbe": (
        "server/site/test_routes.py::test_probes_are_answered_for_pages_of_any_origin",
        "interop/server/test_pages.py::test_both_answer_alike",
    ),
    "TestRunWatchConnectionLoopServeConnect": (
        "server/mesh/test_mesh_links.py"
        "::TestSelf::test_a_relay_recognises_itself_and_ends_the_link",
    ),
    "TestBreakWatcherConn": (
        "server/mesh/test_mesh_links.py"
        "::TestBreak::test_after_each_of_ten_breaks_the_link_is_restored",
    ),
    "TestBreakWatcherConnRecv": (
        "server/mesh/test_mesh_links.py"
        "::TestBreak::test_after_each_of_ten_breaks_the_link_is_restored",
    ),
    "TestNotifyError": (
        "server/mesh/test_mesh_links.py"
        "::TestBreak::test_a_host_that_does_not_listen_yet_is_retried",
    ),
    # tsweb
    "TestDebugger": (
        "server/site/test_pages.py::test_the_index_shows_current_values",
        "interop/server/test_debug_access.py::test_the_address_decides_access",
    ),
    "TestDebuggerKV": (
        "server/site/test_pages.py::test_the_index_shows_the_configuration_of_the_relay",
    ),
    "TestDebuggerURL": ("server/site/test_pages.py::test_the_index_links_every_page",),
    "TestDebuggerSection": (
        "server/site/test_pages.py::test_the_index_shows_the_configuration_of_the_relay",
    ),
    "TestDebuggerHandle": (
        "server/site/test_pages.py::test_other_addresses_are_refused",
        "server/site/test_pages.py::test_this_machine_and_tailscale_addresses_see_every_page",
    ),
    "TestParseTrustedCIDRs": ("cli/relay/test_values.py::test_networks_are_read_from_a_list",),
    "TestAllowDebugAccessTrustedCIDRContains": (
        "server/site/test_view.py::test_trusted_networks_are_allowed",
        "server/site/test_view.py::test_addresses_outside_trusted_networks_are_refused",
    ),
    # A host name to redirect to instead of the one asked for is an option that derper lacks.
    "TestPort80Handler": (
        "server/site/test_routes.py::test_plain_http_beside_tls_is_redirected_with_host_and_query",
        "interop/server/test_debug_access.py::test_plain_http_beside_tls",
    ),
    "TestHandler": (
        "server/site/test_metrics.py::test_a_scrape_has_the_metrics_of_relay_and_process",
    ),
    "TestVarzHandler": ("interop/test_metrics.py::test_metrics_have_the_same_names_and_types",),
    # net/ktimeout
    "TestSetUserTimeout": (
        "server/conn/test_sockets.py::test_accepted_sockets_have_the_options_of_the_listener",
        "server/conn/test_sockets.py::test_zero_keeps_the_systems_options",
    ),
    # New in v1.104.7: derp
    "TestClientRecvPeerPresent": (
        "wire/test_client.py::test_an_app_name_is_read_as_by_go_however_the_stream_is_cut",
    ),
    "TestValidAppName": (
        "wire/login/test_server.py::test_app_names_are_accepted_and_refused_as_by_go",
        "client/test_config.py"
        "::test_a_name_that_relays_refuse_is_refused_before_anything_is_connected",
        "client/test_config.py::test_a_name_that_relays_take_is_taken",
    ),
    "TestWatchAppName": (
        "server/conn/test_protocol.py::test_a_name_that_keeps_the_rule_is_sent_to_watchers",
        "relay/test_connection.py::test_present_frame_ends_in_the_name_as_go_writes_it",
        "interop/client/test_messages.py::test_a_watcher_sees_the_flags_of_each_peer",
    ),
    "FuzzReadFrameHeader": ("test_fuzz.py::TestTargets::test_mutations_of_seeds",),
    "FuzzReadFrame": ("property/test_wire_properties.py::test_client_session_reads_any_frame",),
    "FuzzRecvTimeout": (
        "property/test_wire_properties.py::test_client_session_refuses_invalid_bytes",
    ),
    "FuzzRecvServerKey": (
        "client/test_login.py::test_a_bad_greeting_fails_the_connect",
        "property/test_wire_properties.py::test_client_session_refuses_invalid_bytes",
    ),
    # New in v1.104.7: derp/derphttp
    "TestConnectNon101ResponseBodyBounded": (
        "client/test_login.py::test_the_body_of_a_refusal_is_read_up_to_a_limit",
    ),
    "TestDialNodeUsingProxyHostname": (
        "client/test_connect.py::test_a_host_name_that_no_proxy_can_be_asked_for_fails_that_node_only",
    ),
    # New in v1.104.7: derp/derpserver
    "TestRecvClientKeyAppName": (
        "wire/login/test_server.py::test_app_names_are_accepted_and_refused_as_by_go",
        "interop/server/test_app_names.py::test_a_name_must_be_printable_and_short",
    ),
    "TestVerifyClientDisallowedAppNames": (
        "server/conn/test_protocol.py"
        "::test_a_disallowed_app_name_ends_the_login_except_for_mesh_peers",
        "interop/server/test_app_names.py::test_disallowed_names_are_refused",
    ),
    "TestUnknownFrameSizeLimit": (
        "fault/test_hostile.py::test_an_unknown_frame_that_is_too_long_is_not_awaited",
        "interop/go/frames.go::unknownframes",
    ),
    "TestHandlerUpgradeWriteTimeout": (
        "server/conn/test_protocol_time.py"
        "::test_a_client_that_does_not_read_the_upgrade_answer_is_closed_and_logged",
        "server/conn/test_protocol_time.py"
        "::test_reading_the_upgrade_answer_byte_by_byte_does_not_extend_the_login_timeout",
    ),
    "TestPktQueue": (
        "relay/test_backlog.py::test_the_33rd_packet_drops_the_oldest",
        "relay/test_backlog.py"
        "::test_drain_packets_returns_every_packet_with_its_kind_and_keeps_control_frames",
    ),
    "TestWriterBufferedWriteFrames": (
        "relay/delivery/test_queues.py"
        "::test_waiting_packets_are_counted_with_their_time_and_their_writes",
    ),
    "TestWriterFloodDoesNotStarveControlFrames": (
        "relay/test_backlog.py::test_take_returns_control_then_changes_then_both_kinds_in_turn",
    ),
    "TestWriterParksWhenIdle": (
        "server/conn/test_protocol_time.py"
        "::test_idle_connections_schedule_nothing_before_and_after_traffic",
        "server/app/test_relay.py::test_connections_have_no_tasks_and_no_threads",
        "relay/test_connection.py::test_an_idle_connection_has_no_queues_no_sets_and_no_dict",
    ),
    # No history is kept.
    "TestServerDupClientSendHistoryBounded/last_writer_active": (
        "relay/test_registry.py::test_takeovers_are_those_of_go_for_any_sequence_of_events",
    ),
    "TestSenderCardinalityEnv": (
        "cli/relay/test_flags.py::test_senders_are_counted_unless_switched_off",
    ),
    "TestGetPerClientSendQueueDepth": (
        "cli/relay/test_flags.py::test_a_queue_depth_that_is_none_counts_as_not_given",
        "relay/test_backlog.py::test_the_depth_can_be_configured",
    ),
    "TestServeDebugClients": (
        "server/site/test_clients.py::test_an_invalid_query_is_refused",
        "interop/server/test_debug_clients.py::test_both_refuse_a_bad_request_with_the_same_text",
        "interop/server/test_debug_clients.py::test_the_page_shows_the_same",
    ),
    "TestServeDebugClientsPagination": (
        "server/site/test_clients.py::test_next_links_reach_every_connection_once_and_in_order",
        "server/site/test_clients.py::test_cursors_may_be_written_by_hand",
    ),
    # New in v1.104.7: cmd/derper
    "TestHijackTrackingResponseWriter/hijacked": (
        "interop/server/test_tls_gauge.py::test_the_gauge_follows_each_connection",
    ),
    # New in v1.104.7: net/stunserver, net/stun, net/pktinfo
    "TestReplySourceAddr": (
        "server/services/test_stun_sources.py"
        "::test_each_address_of_a_host_answers_its_own_requests",
        "server/services/test_stun_sources.py"
        "::test_without_pktinfo_requests_are_answered_and_a_warning_is_logged_once",
        "interop/test_stun_sources.py::test_each_address_answers_with_itself",
    ),
    "FuzzParseResponse": (
        "wire/test_stun.py::test_any_attributes_raise_only_remote_protocol_error",
    ),
    "FuzzParseBindingRequest": (
        "wire/test_stun.py::test_any_attributes_raise_only_remote_protocol_error",
    ),
    "FuzzForeachAttr": ("wire/test_stun.py::test_any_attributes_raise_only_remote_protocol_error",),
    "FuzzMappedAddress": (
        "wire/test_stun.py::test_any_attributes_raise_only_remote_protocol_error",
    ),
    "FuzzXorMappedAddress": (
        "wire/test_stun.py::test_any_attributes_raise_only_remote_protocol_error",
    ),
    # net/netcheck, cmd/tailscale/cli, net/ping, net/captivedetection
    "TestBasic": (
        "netcheck/test_core.py::test_a_region_that_answers_ends_the_run",
        "netcheck/test_checker.py::test_one_server_on_loopback_is_measured",
    ),
    "TestMultiGlobalAddressMapping": (
        "netcheck/test_core.py::test_a_mapping_that_varied_once_varies",
    ),
    "TestWorksWhenUDPBlocked": ("netcheck/test_core.py::test_blocked_udp_as_in_go",),
    "TestNoUDPNilGetReportOpts": (
        "netcheck/test_core.py::test_without_udp_all_regions_are_measured_by_https_and_icmp",
        "interop/netcheck/test_beside_tailscale.py::test_each_network_is_reported_alike",
    ),
    "TestReportTimeouts": ("netcheck/test_core.py::test_nothing_outlives_the_run",),
    "TestRecentReportsRetainFullNetcheck": (
        "netcheck/test_core.py::test_recent_reports_cover_all_regions",
    ),
    "TestSortRegions": (
        "netcheck/test_plan.py::test_regions_are_sorted_by_latency_and_those_without_come_last",
    ),
    "TestNodeAddrResolve": ("netcheck/test_checker.py::test_names_are_looked_up_once_a_family",),
    "TestRegionLatencyCompare": (
        "netcheck/test_home.py::test_the_home_is_that_of_go",
        "netcheck/test_report.py::test_text_of_a_report",
    ),
    "TestSTUNResponseProvesCanSend": (
        "netcheck/test_core.py::test_a_region_that_answers_ends_the_run",
    ),
    "TestAddReportHistoryAndSetPreferredDERP": (
        "netcheck/test_home.py::test_the_home_is_that_of_go",
    ),
    "TestMakeProbePlan": (
        "netcheck/test_plan.py::test_an_initial_plan_has_all_measured_regions",
        "netcheck/test_plan.py::test_an_incremental_plan_has_the_fastest_regions_and_home",
    ),
    "TestCreateBindStr": (
        "cli/test_netcheck.py::test_flags_and_environment_make_the_bind_address",
        "cli/test_netcheck.py::test_an_invalid_bind_address_is_refused",
    ),
    "TestPinger": ("netcheck/test_icmp.py::test_only_the_answer_to_the_echo_ends_the_wait",),
    "TestPingerTimeout": ("netcheck/test_icmp.py::test_closing_ends_waiting_pings",),
    "TestPingerMismatch": (
        "netcheck/test_icmp.py::test_only_the_answer_to_the_echo_ends_the_wait",
    ),
    "TestCaptivePortalRequest": ("netcheck/test_captive.py::test_the_request_is_that_of_go",),
    "TestAgainstDERPHandler": ("netcheck/test_captive.py::test_a_relay_of_pyderp_is_no_portal",),
    "TestDetectCaptivePortalReturnsFalse": (
        "netcheck/test_core.py::test_without_an_interface_there_is_no_portal",
    ),
}
"""Go's tests, and the tests here that prove the same."""

WITHOUT: Final[Mapping[str, str]] = {
    "TestServerDupClients/concurrent_dups_get_disabled": "disableFighters, for tests",
    "TestServerDupClients/concurrent_dups_three_parties": "disableFighters, for tests",
    "TestServerDupClients/activity_promotes_primary_when_nil": "disableFighters, for tests",
    "TestLookupDestHashTrieIgnoresInactiveSet": "only disableFighters leaves a set without one",
    "TestLookupDestHashTrieNoAlloc": "about Go's memory",
    "TestProdAutocertHostPolicy": "only Tailscale gets certificates for its names",
    "TestDeps": "about Go's packages",
    "TestAttrOrderForXdpDERP": "XDP: not built",
    "TestXDP": "XDP: not built",
    "TestCountersMapKey": "XDP: not built",
    # New in v1.104.7.
    "TestServerDupClientSendHistoryBounded/disable_fighters": "disableFighters, for tests",
    "TestPacketBufPool": "about Go's memory",
    "TestHijackTrackingResponseWriter/not-hijackable": "about Go's HTTP server",
    "TestHandlerTLSReaderSize": "about the size of Go's read buffers",
    "TestRuntimeMetricsHandler": "about Go's runtime",
    "TestCurrentFDsFast": "about one way of counting them; the number is the same",
    "TestWriterWakeStress": "no task writes, so none is woken",
    "TestLogConciseReport": "a daemon's log line",
    "TestV6Pinger": "relays are pinged by IPv4 only",
    "TestAvailableEndpointsAlwaysAtLeastTwo": "Tailscale's own hosts are not asked",
    "TestSendPktHeadDropAttribution": "a drop is counted with its reason, without a key",
}
"""Go's tests that have no twin, and why."""

BEYOND: Final[Mapping[str, tuple[str, ...]]] = {
    "admission URL: all answers": (
        "admission/test_url.py::test_the_request_has_exactly_this_body_and_no_content_type",
        "admission/test_url.py::test_a_response_decides_with_and_without_fail_open",
        "admission/test_url.py"
        "::test_a_connection_without_a_valid_answer_refuses_even_with_fail_open",
        "interop/admission/test_beside_derper.py::test_an_admission_url_is_asked_alike",
        "interop/admission/test_beside_derper.py::test_an_admission_url_that_fails_closed",
        "server/conn/test_login.py::test_admission_is_not_checked_for_mesh_peers",
    ),
    "local tailscaled: all answers, and the self check": (
        "admission/test_tailscaled.py::test_each_answer_of_the_daemon",
        "admission/test_tailscaled.py::test_a_missing_socket_allows_no_client",
        "interop/admission/test_beside_derper.py::test_a_local_tailscaled_is_asked_alike",
        "server/site/test_check.py::test_admission_that_would_refuse_this_machine_is_reported",
    ),
    "login: lengths, keys, mesh keys, silence": (
        "interop/go/login.go::login",
        "interop/go/login.go::badlogin",
        "interop/go/login.go::mutelogin",
        "server/conn/test_protocol_time.py::test_a_silent_connection_has_ten_seconds",
    ),
    "frames: rights and lengths": (
        "interop/server/test_frames.py::test_lengths_and_rights_have_the_same_limits",
        "interop/go/frames.go::badframes",
        "interop/go/mesh.go::meshrights",
    ),
    "payloads of nothing to one byte too many": (
        "interop/server/test_frames.py::test_the_longest_packet_arrives_to_the_last_byte",
        "interop/go/sizes.go::sizes",
    ),
    "duplicates on the wire": ("interop/go/gone.go::duplicates", "interop/go/mesh.go::watchers"),
    "PeerGone when a sender leaves, and leaves again": (
        "interop/go/gone.go::peergone",
        "interop/test_go_clients.py::test_second_departure_of_a_peer",
        "relay/router/test_departures.py::TestPeerGone::test_a_second_departure_is_sent_again",
    ),
    "a slow reader": (
        "interop/server/test_slow_reader.py::test_a_slow_reader_is_closed_after_two_seconds",
        "server/conn/test_protocol_time.py::test_a_client_that_reads_no_byte_is_aborted",
        "server/conn/test_protocol_time.py::test_a_mesh_peer_has_thirty_seconds",
    ),
    "the end of a client that reads nothing is sent to peers at once": (
        "fault/test_stuck_end.py::test_the_end_of_a_stuck_client_is_announced_at_once",
        "interop/server/test_stuck_end.py::test_peer_gone_arrives_before_the_write_times_out",
    ),
    "a dead path, and what the kernel ends by itself": (
        "fault/test_dead_path.py::test_a_client_behind_a_dead_path_is_ended_and_slow_readers_live",
        "fault/test_dead_path.py::test_a_path_that_dies_while_the_window_is_closed",
        "fault/test_dead_path.py::test_a_connection_that_the_kernel_gives_up_is_logged_and_counted",
    ),
    "a flood of pings": (
        "interop/server/test_frames.py::test_a_flood_of_pings_gets_few_pongs",
        "interop/go/basic.go::pingflood",
    ),
    "keep-alives": (
        "server/conn/test_protocol_time.py"
        "::test_keepalives_are_sent_after_sixty_seconds_and_jitter",
        "server/conn/test_protocol_time.py::test_the_jitter_is_drawn_once_per_connection",
    ),
    "home moves count after five seconds": (
        "interop/server/test_home.py::test_moves_count_after_five_seconds",
        "relay/test_router.py::TestHome::test_moves_count_only_later_than_five_seconds_after_login",
    ),
    "HTTP": (
        "interop/go/web.go::upgrade",
        "interop/go/web.go::faststart",
        "interop/go/web.go::httpanswers",
        "interop/server/test_pages.py::test_both_answer_alike",
        "interop/server/test_pages.py::test_unknown_paths_are_not_the_home_page",
        "interop/server/test_pages.py::test_both_answer_alike_with_other_settings",
        "server/conn/test_protocol_time.py"
        "::test_an_idle_http_connection_is_closed_after_thirty_seconds_without_a_log_line",
    ),
    "websocket": (
        "interop/go/wsraw.go::wshandshake",
        "interop/go/wsraw.go::wsframes",
        "interop/go/sizes.go::wslimit",
        "server/conn/test_websocket.py"
        "::test_a_full_packet_may_be_one_message_and_is_sent_in_small_ones",
    ),
    "two meshed relays": (
        "server/mesh/test_mesh.py::test_packets_are_forwarded_both_ways",
        "server/mesh/test_mesh.py::test_a_local_connection_is_preferred_to_a_remote_one",
        "server/mesh/test_mesh.py::test_a_relay_that_restarts_is_linked_again",
        "relay/router/test_mesh.py"
        "::TestForward::test_disco_forwarded_to_an_unknown_key_is_answered_with_not_here",
        "interop/mesh/test_mixed.py::test_clients_of_four_nodes_reach_each_other",
        "interop/mesh/test_derpprobe.py::test_the_prober_finds_no_problem",
    ),
    "accept limit": (
        "interop/server/test_limits_of_accepting.py::test_derper_exits",
        "interop/server/test_limits_of_accepting.py::test_ours_serves_on",
        "server/conn/test_accept.py"
        "::test_connections_beyond_the_burst_are_closed_and_the_relay_continues",
    ),
    "SIGHUP with and without rate limits": (
        "interop/server/test_signals.py::test_sighup_kills_derper",
        "interop/server/test_signals.py::test_sighup_reloads_pyderp_which_goes_on",
        "interop/test_rate_limits.py::test_packets_above_the_burst_come_at_the_rate",
    ),
    "STUN: everything but the usual request": (
        "interop/test_stun.py::test_both_answer_the_same_requests",
        "interop/test_stun.py::test_both_answer_with_the_same_bytes",
        "server/services/test_stun.py::test_other_datagrams_are_ignored_and_counted",
    ),
    "key file": (
        "interop/server/test_key_file.py::test_either_makes_it_and_the_other_uses_it",
        "interop/server/test_key_file.py::test_an_invalid_key_ends_both_and_is_not_changed",
    ),
    "certificates from files": (
        "interop/server/test_manual_certificates.py::test_the_requested_name_selects_the_certificate",
        "interop/server/test_manual_certificates.py::test_a_certificate_is_made_for_an_address",
        "interop/server/test_manual_certificates.py::test_both_refuse_the_same",
        "interop/server/test_manual_certificates.py"
        "::test_both_make_a_folder_and_name_the_files_of_an_ipv6_address_alike",
    ),
    "access to the debug pages": (
        "interop/server/test_debug_access.py::test_the_address_decides_access",
        "interop/server/test_debug_access.py::test_the_key_and_forwarded_requests",
        "server/site/test_served.py::test_debug_access",
    ),
}
"""What Go's tests do not prove, and the tests here that do."""

WANTED: Final = sorted(
    {each for table in (TWINS, BEYOND) for tests in table.values() for each in tests}
)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def defined(body: list[ast.stmt], above: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield f"{above}::{node.name}"
            yield from defined(node.body, f"{above}::{node.name}")
        elif isinstance(node, FUNCTIONS) and node.name.startswith("test_"):
            yield f"{above}::{node.name}"


@cache
def names_in(file: str) -> frozenset[str]:
    """The tests and their classes in a file; of a Go file the scenarios that are played."""
    text = (TESTS / file).read_text(encoding="utf-8")
    if file.endswith(".go"):
        played = re.findall(r'"([a-z_]+)"', (TESTS / "interop/test_go_clients.py").read_text())
        registered = re.findall(r'^\tregister\("([a-z_]+)",', text, re.MULTILINE)
        return frozenset(f"{file}::{name}" for name in registered if name in played)
    return frozenset(defined(ast.parse(text).body, file))


@pytest.mark.parametrize("test", WANTED)
def test_each_of_them_exists(test: str) -> None:
    assert test in names_in(test.partition("::")[0])


def test_no_test_of_go_is_both_here_and_missing() -> None:
    assert not TWINS.keys() & WITHOUT.keys()
    assert all(WITHOUT.values())
