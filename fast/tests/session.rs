//! Sessions with clients that keep the rules of TLS, and with clients that break them.

mod common;

use common::{
    config, feed, odd_pair, seal, session, Client, Numbers, ALERT, APPLICATION, CHANGE_CIPHER_SPEC,
    HANDSHAKE,
};
use pyderp_fast::errors::{BRINGS_NOTHING, INTERNAL, NOT_ESTABLISHED, NOT_TLS, PLAIN_HTTP};
use pyderp_fast::session::Session;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::crypto::SupportedKxGroup;
use rustls::version::{TLS12, TLS13};
use rustls::NamedGroup;

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn bytes(count: usize) -> Vec<u8> {
    let mut numbers = Numbers(count as u64 + 1);
    (0..count).map(|_| numbers.below(256) as u8).collect()
}

#[test]
fn data_goes_both_ways() {
    for version in VERSIONS {
        let mut session = session();
        let mut client = Client::new(version);
        client.shake(&mut session);
        let data = bytes(150_000);
        assert_eq!(feed(&mut session, &client.seal(&data)), data);
        let sealed = seal(&mut session, &[&data[..20_000], &data[20_000..20_001], &data[20_001..]]);
        assert_eq!(client.input(&sealed).unwrap(), data);
        assert_eq!(sealed.len(), session.sealed_size(data.len()));
    }
}

#[test]
fn what_comes_byte_by_byte_is_the_same() {
    for version in VERSIONS {
        let mut session = session();
        let mut client = Client::new(version);
        for _ in 0..4 {
            for byte in client.output() {
                feed(&mut session, &[byte]);
            }
            client.input(&session.take_output()).unwrap();
        }
        assert!(session.established());
        let data = bytes(20_000);
        let mut plain = Vec::new();
        for byte in client.seal(&data) {
            plain.extend(feed(&mut session, &[byte]));
        }
        assert_eq!(plain, data);
    }
}

#[test]
fn data_and_the_close_alert_may_come_with_the_end_of_the_handshake() {
    for version in VERSIONS {
        let mut session = session();
        let mut client = Client::new(version);
        let mut data = client.output();
        while client.tls.is_handshaking() {
            feed(&mut session, &data);
            client.input(&session.take_output()).unwrap();
            if client.tls.is_handshaking() {
                data = client.output();
            }
        }
        let mut last = client.seal(b"early");
        client.tls.send_close_notify();
        last.extend(client.output());
        assert_eq!(feed(&mut session, &last), b"early");
        assert!(session.established() && session.closed());
        assert!(!session.version().is_empty());
        client.input(&session.close()).unwrap();
    }
}

#[test]
fn a_protocol_is_named_only_to_those_that_offer_it() {
    for (protocols, alpn, chosen) in [
        (&["http/1.1"][..], true, Some(&b"http/1.1"[..])),
        (&["h2", "http/1.1"], true, Some(b"http/1.1")),
        (&["h2"], false, None),
        (&[], true, None),
    ] {
        let mut session = Session::new(&config(), alpn).unwrap();
        let mut client = Client::with_protocols(&TLS13, protocols);
        client.shake(&mut session);
        assert_eq!(client.tls.alpn_protocol(), chosen);
    }
}

#[test]
fn the_exchange_of_keys_withstands_quantum_computers_if_the_client_can() {
    let (hybrid, classic) = (NamedGroup::X25519MLKEM768, NamedGroup::X25519);
    let orders: [(&[&'static dyn SupportedKxGroup], NamedGroup); 4] = [
        (&[kx_group::X25519MLKEM768, kx_group::X25519], hybrid),
        (&[kx_group::X25519, kx_group::SECP256R1], classic),
        (&[kx_group::SECP384R1, kx_group::X25519], NamedGroup::secp384r1),
        // The key share in the ClientHello is of the first group, which the session does not know.
        (&[kx_group::MLKEM1024, kx_group::X25519], classic),
    ];
    for (groups, chosen) in orders {
        let mut session = session();
        let mut client = Client::with_groups(&TLS13, &[], groups);
        client.shake(&mut session);
        assert_eq!(client.tls.negotiated_key_exchange_group().unwrap().name(), chosen);
        assert_eq!(feed(&mut session, &client.seal(b"data")), b"data");
    }
}

#[test]
fn plain_http_and_noise_are_told_apart() {
    for (data, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], PLAIN_HTTP),
        (b"POST /derp", PLAIN_HTTP),
        (b"SSH-2.0-x", NOT_TLS),
        (b"\x80\x2e\x01\x00\x02", NOT_TLS),
    ] {
        let mut session = session();
        for byte in data {
            feed(&mut session, &[*byte]);
        }
        assert_eq!(session.failure(), Some(reason));
    }
}

#[test]
fn a_failed_session_does_nothing_more() {
    let (mut session, mut odd) = odd_pair();
    let mut record = odd.record(APPLICATION, b"data");
    *record.last_mut().unwrap() ^= 1;
    assert!(feed(&mut session, &record).is_empty());
    assert_eq!(session.failure(), Some("a record that cannot be decrypted"));
    assert!(session.has_output(), "an alert");
    session.take_output();
    assert!(feed(&mut session, &odd.record(APPLICATION, b"data")).is_empty());
    assert!(seal(&mut session, &[b"data"]).is_empty());
    assert!(session.close().is_empty() && !session.has_output());
}

#[test]
fn the_alert_of_a_failure_reaches_the_client() {
    let mut session = session();
    let mut client = Client::with_protocols(&TLS13, &["h2"]);
    let mut session_with_alpn = Session::new(&config(), true).unwrap();
    feed(&mut session_with_alpn, &client.output());
    assert_eq!(session_with_alpn.failure(), Some("no application protocol in common"));
    let error = client.input(&session_with_alpn.take_output()).unwrap_err();
    assert_eq!(
        error,
        rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)
    );
    assert!(feed(&mut session, &[22, 3, 1, 0, 4, 1, 0, 0, 0]).is_empty());
    assert_eq!(session.take_output()[..2], [ALERT, 3]);
}

#[test]
fn a_panic_ends_one_session_alone() {
    let (mut other, mut odd_other) = odd_pair();
    let (mut session, mut odd) = odd_pair();
    session.panic_next();
    assert!(feed(&mut session, &odd.record(APPLICATION, b"data")).is_empty());
    assert_eq!(session.failure(), Some(INTERNAL));
    assert!(feed(&mut session, &odd.record(APPLICATION, b"data")).is_empty());
    assert!(seal(&mut session, &[b"data"]).is_empty() && session.close().is_empty());
    assert_eq!(feed(&mut other, &odd_other.record(APPLICATION, b"data")), b"data");
}

#[test]
fn nothing_is_sealed_before_the_handshake_is_over() {
    let mut session = session();
    assert!(session.close().is_empty());
    assert!(seal(&mut session, &[b"data"]).is_empty());
    assert_eq!(session.failure(), Some(NOT_ESTABLISHED));
}

#[test]
fn empty_records_end_a_connection_after_a_while() {
    for kind in [APPLICATION, HANDSHAKE] {
        let (mut session, mut odd) = odd_pair();
        for _ in 0..32 {
            feed(&mut session, &odd.record(kind, b""));
        }
        assert_eq!(session.failure(), None);
        feed(&mut session, &odd.record(kind, b""));
        assert_eq!(session.failure(), Some(BRINGS_NOTHING));
    }
}

#[test]
fn padding_brings_nothing_either() {
    let (mut session, mut odd) = odd_pair();
    for _ in 0..2 {
        feed(&mut session, &odd.padded(APPLICATION, b"", 16_000));
        feed(&mut session, &odd.padded(APPLICATION, b"x", 16_000));
    }
    for _ in 0..2 {
        feed(&mut session, &odd.padded(APPLICATION, b"", 16_000));
    }
    assert_eq!(session.failure(), None);
    feed(&mut session, &odd.padded(APPLICATION, b"", 16_000));
    assert_eq!(session.failure(), Some(BRINGS_NOTHING));
}

#[test]
fn key_updates_are_answered_and_bounded() {
    let mut session = session();
    let mut client = Client::new(&TLS13);
    client.shake(&mut session);
    for _ in 0..100 {
        client.tls.refresh_traffic_keys().unwrap();
        let update = client.output();
        feed(&mut session, &update);
        assert_eq!(feed(&mut session, &client.seal(b"to the relay")), b"to the relay");
        // The answer is written before the next record, so that record does not fit the room.
        let sealed = seal(&mut session, &[b"to ", b"the client"]);
        assert!(sealed.len() > session.sealed_size(13));
        assert_eq!(client.input(&sealed).unwrap(), b"to the client");
    }
    for _ in 0..200 {
        client.tls.refresh_traffic_keys().unwrap();
    }
    feed(&mut session, &client.output());
    assert_eq!(session.failure(), Some(BRINGS_NOTHING));
}

#[test]
fn alerts_end_a_connection() {
    let (mut session, mut odd) = odd_pair();
    feed(&mut session, &odd.record(ALERT, &[1, 90]));
    assert_eq!(session.failure(), None, "user_canceled is harmless");
    let mut close = odd.record(ALERT, &[1, 0]);
    close.extend(odd.record(APPLICATION, b"too late"));
    assert!(feed(&mut session, &close).is_empty());
    assert!(session.closed() && session.failure().is_none());
    assert!(feed(&mut session, &odd.record(APPLICATION, b"too late")).is_empty());
    assert!(!seal(&mut session, &[b"still"]).is_empty() && !session.close().is_empty());
    assert!(session.close().is_empty());

    let (mut session, mut odd) = odd_pair();
    feed(&mut session, &odd.record(ALERT, &[2, 48]));
    assert_eq!(session.failure(), Some("alert from the client: unknown ca"));
    for alert in [&[2][..], &[], &[7, 0], &[1, 41], &[1, 0, 1, 0]] {
        let (mut session, mut odd) = odd_pair();
        feed(&mut session, &odd.record(ALERT, alert));
        assert!(session.failure().is_some() || session.closed(), "{alert:?}");
        assert_ne!(session.failure(), Some(INTERNAL));
    }
}

#[test]
fn messages_in_the_wrong_place_end_a_connection() {
    for (kind, contents) in [
        (HANDSHAKE, &[1, 0, 0, 0][..]),                 // ClientHello
        (HANDSHAKE, &[4, 0, 0, 1, 0]),                  // NewSessionTicket
        (HANDSHAKE, &[20, 0, 0, 0]),                    // Finished
        (HANDSHAKE, &[24, 0, 0, 1, 9]),                 // KeyUpdate that asks for something else
        (HANDSHAKE, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0]), // two in one
        (HANDSHAKE, &[24, 1, 0, 0]),                    // of 64 KiB
        (CHANGE_CIPHER_SPEC, &[1]),
        (0, &[]), // no type at all
        (99, b"what"),
    ] {
        let (mut session, mut odd) = odd_pair();
        let mut data = odd.record(kind, contents);
        data.extend(odd.record(APPLICATION, b"behind it"));
        feed(&mut session, &data);
        let failure = session.failure();
        assert!(
            failure.is_some_and(|reason| reason != INTERNAL),
            "{kind} {contents:?} {failure:?}"
        );
    }
}

#[test]
fn half_a_message_may_wait_and_be_written_past() {
    let (mut session, mut odd) = odd_pair();
    // A key update in five records: no other record may come before its end.
    for byte in [24, 0, 0, 1] {
        feed(&mut session, &odd.record(HANDSHAKE, &[byte]));
        assert!(!seal(&mut session, &[b"in between"]).is_empty());
        assert_eq!(session.failure(), None);
    }
    let mut last = odd.record(HANDSHAKE, &[0]);
    let rest = last.split_off(9);
    feed(&mut session, &last);
    assert!(!seal(&mut session, &[b"in between"]).is_empty());
    feed(&mut session, &rest);
    assert_eq!(session.failure(), None);
    assert!(!session.close().is_empty());

    let (mut session, mut odd) = odd_pair();
    feed(&mut session, &odd.record(HANDSHAKE, &[24, 0]));
    feed(&mut session, &odd.record(APPLICATION, b"in between"));
    assert_eq!(
        session.failure(),
        Some("misbehaving client: message interleaved with handshake message")
    );
}

#[test]
fn a_message_without_end_is_bounded() {
    let (mut session, mut odd) = odd_pair();
    feed(&mut session, &odd.record(HANDSHAKE, &[24, 0, 0xff, 0xff]));
    for _ in 0..3000 {
        feed(&mut session, &odd.record(HANDSHAKE, &[0]));
    }
    assert_eq!(session.failure(), Some(BRINGS_NOTHING));

    let mut session = common::session();
    let mut hello = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    for _ in 0..20_000 {
        hello.extend([22, 3, 1, 0, 1, 0]);
    }
    for piece in hello.chunks(1000) {
        feed(&mut session, piece);
    }
    assert_eq!(session.failure(), Some("the handshake is too large"));
}

#[test]
fn record_headers_that_lie_end_a_connection() {
    for header in [
        [APPLICATION, 3, 3, 0, 0],
        [APPLICATION, 3, 3, 0xff, 0xff],
        [APPLICATION, 3, 3, 0x49, 0],
        [APPLICATION, 9, 9, 0, 20],
        [77, 3, 3, 0, 20],
        [HANDSHAKE, 3, 3, 0, 20],
    ] {
        let (mut session, _) = odd_pair();
        let mut data = header.to_vec();
        data.resize(20_000, 0);
        feed(&mut session, &data);
        let failure = session.failure().expect("it must not go on");
        assert_ne!(failure, INTERNAL, "{header:?}");
    }
}

#[test]
fn what_a_client_cannot_decrypt_is_counted_in_records() {
    for version in VERSIONS {
        let mut session = session();
        let mut client = Client::new(version);
        client.shake(&mut session);
        for plain in [1, 100, 16_384, 16_385, 40_000, 65_536] {
            let sealed = seal(&mut session, &[&bytes(plain)]);
            client.input(&sealed).unwrap();
            for missing in [0, 1, 50, 4_000, 16_406, 16_407, 30_000, sealed.len()] {
                if missing > sealed.len() {
                    continue;
                }
                let mut whole = 0;
                let mut at = 0;
                while at < sealed.len() - missing {
                    let length = usize::from(sealed[at + 3]) * 256 + usize::from(sealed[at + 4]);
                    at += 5 + length;
                    if at <= sealed.len() - missing {
                        let overhead = session.sealed_size(1) - 1;
                        whole += 5 + length - overhead;
                    }
                }
                assert_eq!(session.unsent_size(missing, plain), plain - whole);
            }
        }
    }
}

/// No change of the client's bytes, in the handshake or after it, causes an internal error.
#[test]
fn no_mutation_finds_a_bug() {
    let mut numbers = Numbers(12);
    let config = config();
    for round in 0..1500 {
        let mut session = Session::new(&config, round % 2 == 0).unwrap();
        let mut client = Client::new(VERSIONS[round % 2]);
        let changed_step = numbers.below(4);
        for step in 0..4 {
            let mut data = client.output();
            if step >= 2 {
                data.extend(client.seal(&bytes(500)));
            }
            if step == changed_step {
                mutate(&mut data, &mut numbers);
            }
            let cut = numbers.below(data.len() + 1);
            feed(&mut session, &data[..cut]);
            feed(&mut session, &data[cut..]);
            if session.established() {
                seal(&mut session, &[b"some", b"data"]);
            }
            assert_ne!(session.failure(), Some(INTERNAL), "round {round}");
            if client.input(&session.take_output()).is_err()
                || client.tls.is_handshaking() && step > 1
            {
                break;
            }
        }
        session.close();
        assert_ne!(session.failure(), Some(INTERNAL), "round {round}");
    }
}

fn mutate(data: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        if data.is_empty() {
            return;
        }
        let at = numbers.below(data.len());
        match numbers.below(5) {
            0 => data[at] ^= 1 << numbers.below(8),
            1 => data[at] = numbers.below(256) as u8,
            2 => data.truncate(at),
            3 => data.insert(at, numbers.below(256) as u8),
            _ => {
                let copy = data[at..(at + 40).min(data.len())].to_vec();
                data.extend(copy);
            }
        }
    }
}
