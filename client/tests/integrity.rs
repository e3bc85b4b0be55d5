//! Servers that spoil what they send, or fall silent: each is noticed, counted by its cause, and said.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;

type Spoil = fn(&mut [u8; 64]);

/// Echoes messages of 64 bytes; the third of the fourth connection goes through `spoil`.
fn spoiling_server(spoil: Spoil) -> SocketAddr {
    common::stub(move |mut stream, number| {
        let mut message = [0; 64];
        let mut count = 0;
        while stream.read_exact(&mut message).is_ok() {
            count += 1;
            if (number, count) == (3, 3) {
                spoil(&mut message);
            }
            let _ = stream.write_all(&message);
        }
    })
}

#[test]
fn an_echo_with_one_wrong_bit_or_bytes_out_of_place_is_given_up_by_its_cause() {
    if !common::has_io_uring(
        "an_echo_with_one_wrong_bit_or_bytes_out_of_place_is_given_up_by_its_cause",
    ) {
        return;
    }
    let spoils: [Spoil; 3] = [
        |message| message[40] ^= 1,
        |message| message.rotate_left(1),
        // Words in the wrong order.
        |message| message.rotate_left(8),
    ];
    for spoil in spoils {
        let summary = common::run(&format!(
            "{} --connections 8 --active 8 --protocol echo --hold 1s",
            spoiling_server(spoil)
        ));
        assert_eq!(summary["messages"]["mismatched"], 1, "{summary}");
        assert_eq!(
            summary["lost_by_cause"],
            json!({"wrong bytes in an echo": 1})
        );
        // The others go on.
        assert_eq!(summary["ended"], "complete", "{summary}");
        assert!(summary["messages"]["completed"].as_u64().unwrap() > 8);
        let diagnosis = summary["diagnosis"].as_str().unwrap();
        assert!(diagnosis.contains("wrong bytes in an echo"), "{diagnosis}");
    }
}

#[test]
fn bytes_that_nobody_asked_for_and_a_wrong_greeting_have_causes_of_their_own() {
    if !common::has_io_uring(
        "bytes_that_nobody_asked_for_and_a_wrong_greeting_have_causes_of_their_own",
    ) {
        return;
    }
    let server = common::stub(|mut stream, number| {
        let greeting = match number {
            0 => b"Welcome to another server entirely.\r\n" as &[u8],
            _ => wire::line::GREETING,
        };
        let _ = stream.write_all(greeting);
        if number == 1 {
            let _ = stream.write_all(b"what is this?\n");
        }
        drain(stream);
    });
    let summary = common::run(&format!(
        "{server} --connections 5 --heartbeat 0s --hold 1s"
    ));
    assert_eq!(
        summary["lost_by_cause"],
        json!({"wrong bytes in the greeting": 1, "bytes nobody asked for": 1}),
        "{summary}"
    );
    assert_eq!(summary["greetings_verified"], 4, "{summary}");
}

#[test]
fn heartbeats_that_come_late_or_no_more_are_counted() {
    if !common::has_io_uring("heartbeats_that_come_late_or_no_more_are_counted") {
        return;
    }
    let interval = Duration::from_millis(200);
    let server = common::stub(move |mut stream, number| {
        let _ = stream.write_all(wire::line::GREETING);
        for beat in 0.. {
            match (number, beat) {
                // The second beat of one comes late.
                (0, 1) => thread::sleep(Duration::from_millis(1500)),
                // Two send one, and no more.
                (1 | 2, 1) => return drain(stream),
                _ => thread::sleep(interval),
            }
            if stream.write_all(wire::line::HEARTBEAT).is_err() {
                return;
            }
        }
    });
    let summary = common::run(&format!(
        "{server} --connections 6 --heartbeat 200ms --hold 3s"
    ));
    let beats = &summary["heartbeats"];
    assert_eq!(beats["missing"], 2, "{beats}");
    assert!(beats["late"].as_u64().unwrap() >= 1, "{beats}");
    assert!(
        beats["lateness_us"]["max"].as_u64().unwrap() >= 1_200_000,
        "{beats}"
    );
    assert!(beats["received"].as_u64().unwrap() >= 20, "{beats}");
    let diagnosis = summary["diagnosis"].as_str().unwrap();
    assert!(
        diagnosis.starts_with("2 connections had no heartbeat for two intervals"),
        "{diagnosis}"
    );
    assert_eq!(summary["lost_while_held"], 0);
}

/// Until the client has gone.
fn drain(mut stream: TcpStream) {
    let mut ignored = [0; 100];
    while matches!(stream.read(&mut ignored), Ok(1..)) {}
}
