//! The client library over loopback, against replicas that lose packets and move their leader.
#![allow(clippy::unwrap_used)]

mod fake;

use consensus::auth::Key;
use consensus::client::{ConfigError, SubmitError};
use fake::{Cluster, Manners};
use nearwire::client::{Client, ClientError, Options};
use nearwire::kv;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn body(words: &[&str]) -> Vec<u8> {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    kv::encode(&words).unwrap().1
}

#[test]
fn a_client_finds_the_leader_and_follows_it() {
    let cluster = Cluster::start(3, 3, Manners::default());
    let mut client = Client::connect(&cluster.members, Options::default()).unwrap();
    assert_eq!(
        client.execute(&body(&["SET", "k", "v"])).unwrap(),
        b"+OK\r\n"
    );
    assert_eq!(client.leader(), cluster.members[2].1);
    cluster.leader.store(1, Ordering::Relaxed);
    assert_eq!(client.query(&body(&["GET", "k"])).unwrap(), b"$1\r\nv\r\n");
    assert_eq!(client.leader(), cluster.members[0].1);
    assert_eq!(client.counters().sessions, 1);
}

#[test]
fn lost_packets_neither_lose_nor_double_a_command() {
    let manners = Manners {
        lose_every: 3,
        ..Manners::default()
    };
    let cluster = Cluster::start(1, 1, manners);
    let mut client = Client::connect(&cluster.members, Options::default()).unwrap();
    for number in 1..=50 {
        let reply = client.execute(&body(&["INCR", "n"])).unwrap();
        assert_eq!(reply, format!(":{number}\r\n").into_bytes());
    }
    assert_eq!(cluster.applied.load(Ordering::Relaxed), 50);
    assert!(client.counters().repeated > 0);
}

#[test]
fn pipelined_replies_come_in_the_order_of_submission() {
    let cluster = Cluster::start(3, 2, Manners::default());
    let mut client = Client::connect(&cluster.members, Options::default()).unwrap();
    for token in 0..64 {
        client.submit(token, &body(&["INCR", "n"])).unwrap();
    }
    let full = client.submit(64, &body(&["INCR", "n"])).unwrap_err();
    assert!(
        matches!(full, ClientError::Submit(SubmitError::Full)),
        "{full}"
    );
    for token in 0..64 {
        let done = client.poll().unwrap();
        assert_eq!(done.token, token);
        assert_eq!(
            done.result.unwrap(),
            format!(":{}\r\n", token + 1).into_bytes()
        );
    }
    assert!(matches!(client.poll(), Err(ClientError::Idle)));
    assert!(client.try_poll().unwrap().is_none());
}

#[test]
fn waiting_for_one_reply_keeps_the_others() {
    let cluster = Cluster::start(1, 1, Manners::default());
    let mut client = Client::connect(&cluster.members, Options::default()).unwrap();
    for token in [7, 8] {
        client.submit(token, &body(&["INCR", "n"])).unwrap();
    }
    assert_eq!(client.execute(&body(&["INCR", "n"])).unwrap(), b":3\r\n");
    assert_eq!(client.unanswered(), 0);
    let tokens: Vec<_> = (0..2).map(|_| client.poll().unwrap().token).collect();
    assert_eq!(tokens, [7, 8]);
}

#[test]
fn silence_ends_in_time_and_names_who_was_asked() {
    let mut cluster = Cluster::start(1, 1, Manners::default());
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    cluster.members[0].1 = nobody.local_addr().unwrap();
    let options = Options {
        timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let mut client = Client::connect(&cluster.members, options).unwrap();
    let error = client.execute(&body(&["INCR", "n"])).unwrap_err();
    assert!(
        matches!(error, ClientError::TimedOut { refused: 0, .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(&cluster.members[0].1.to_string()),
        "{error}"
    );
}

#[test]
fn a_reply_that_is_given_up_does_not_answer_the_next_request() {
    let manners = Manners {
        lose_every: 1,
        ..Manners::default()
    };
    let cluster = Cluster::start(2, 2, manners);
    let options = Options {
        timeout: Duration::from_millis(30),
        ..Options::default()
    };
    let mut client = Client::connect(&cluster.members, options).unwrap();
    client.execute(&body(&["INCR", "n"])).unwrap_err();
    drop(cluster);
    assert_eq!(client.unanswered(), 1, "it goes on being repeated");
    assert!(client.try_poll().unwrap().is_none());
}

#[test]
fn tags_are_sent_and_wanted() {
    let key = Some(Key([1, 2]));
    let cluster = Cluster::start(
        3,
        2,
        Manners {
            key,
            ..Manners::default()
        },
    );
    let options = |key: Option<Key>| Options {
        keys: key.map(Into::into),
        timeout: Duration::from_millis(100),
        ..Options::default()
    };
    let mut client = Client::connect(&cluster.members, options(key)).unwrap();
    assert_eq!(
        client.execute(&body(&["SET", "k", "v"])).unwrap(),
        b"+OK\r\n"
    );
    let mut stranger = Client::connect(&cluster.members, options(Some(Key([1, 3])))).unwrap();
    stranger.execute(&body(&["SET", "k", "w"])).unwrap_err();
    assert_eq!(cluster.applied.load(Ordering::Relaxed), 1);

    let open = Cluster::start(1, 1, Manners::default());
    let mut client = Client::connect(&open.members, options(key)).unwrap();
    let error = client.execute(&body(&["SET", "k", "v"])).unwrap_err();
    assert!(
        matches!(error, ClientError::TimedOut { refused: 1.., .. }),
        "{error}"
    );
}

#[test]
fn a_cluster_without_members_and_a_body_without_room_are_refused() {
    let error = Client::connect(&[], Options::default()).err().unwrap();
    assert!(
        matches!(error, ClientError::Config(ConfigError::NoMembers)),
        "{error}"
    );
    let cluster = Cluster::start(1, 1, Manners::default());
    let mut client = Client::connect(&cluster.members, Options::default()).unwrap();
    let error = client.execute(&[0; 2000]).unwrap_err();
    assert!(
        matches!(error, ClientError::Submit(SubmitError::TooLarge)),
        "{error}"
    );
}
