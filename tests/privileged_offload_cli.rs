//! `nearwire offload` beside nodes that run, in namespaces with bpffs of their own.

mod offload_scene;

use nearwire::xdp_site::Ports;
use offload_scene::Scene;

#[test]
fn a_running_node_is_told_and_obeys() {
    let scene = Scene::new("tell", |_| {});
    scene.await_voting();
    let status = scene.json(1, &["status"]);
    let regions = status["regions"].as_array().expect("a list");
    assert_eq!(regions.len(), 1, "{status:#}");
    let region = &regions[0];
    assert_eq!(region["state"], "voting", "{status:#}");
    assert_eq!(region["interface"], "eth0", "{status:#}");
    assert_eq!(region["mode"], "native", "{status:#}");
    assert_eq!(region["owner"], "this", "{status:#}");
    assert_eq!(region["link"], "pinned", "{status:#}");
    assert_eq!(region["process"], scene.process(1), "{status:#}");
    assert_eq!(region["node"], 1, "{status:#}");
    assert_ne!(region["ballot"], "0.0", "{status:#}");
    assert_eq!(status["node"]["offload"]["state"], "voting", "{status:#}");

    let removed = scene.json(1, &["remove"]);
    assert_eq!(removed["offload"]["state"], "removed", "{removed:#}");
    assert_eq!(removed["engine"], "software", "{removed:#}");
    let status = scene.json(1, &["status"]);
    assert_eq!(status["regions"][0]["state"], "detached", "{status:#}");
    assert_eq!(status["node"]["wanted"], "software", "{status:#}");

    let installed = scene.json(1, &["install"]);
    assert_eq!(installed["offload"]["state"], "voting", "{installed:#}");
    assert_eq!(installed["engine"], "xdp", "{installed:#}");
    let status = scene.json(1, &["status"]);
    assert_eq!(status["regions"][0]["state"], "voting", "{status:#}");
}

#[test]
fn what_a_dead_node_left_is_seen_and_detached() {
    let mut scene = Scene::new("left", |_| {});
    scene.await_voting();
    scene.cluster.kill(2);
    let left = scene.json(2, &["status"]);
    assert_eq!(left["regions"][0]["state"], "voting", "{left:#}");
    assert_eq!(left["regions"][0]["held"], false, "{left:#}");
    assert_eq!(left["node"]["running"], false, "{left:#}");
    let removed = scene.json(2, &["remove"]);
    assert_eq!(removed["running"], false, "{removed:#}");
    let status = scene.json(2, &["status"]);
    assert_eq!(status["regions"][0]["state"], "detached", "{status:#}");
    let trim = status["regions"][0]["trim"].as_u64();
    assert!(trim >= Some(1), "the votes are still there: {status:#}");
    // It comes back on the same votes, and in software, as it was told.
    scene.start(2);
    scene.await_report(2, "removed", |report| {
        report["offload"]["state"] == "removed"
    });
    let installed = scene.json(2, &["install"]);
    assert_eq!(installed["offload"]["state"], "voting", "{installed:#}");
}

#[test]
fn an_orphan_goes_only_once_nobody_holds_it() {
    let mut scene = Scene::new("orphan", |_| {});
    scene.await_voting();
    let status = scene.json(3, &["status"]);
    let nonce = status["regions"][0]["region"]
        .as_str()
        .expect("a text")
        .to_owned();
    let orphan = ["offload", "remove", "--orphan", &nonce];
    let refused = scene.nearwire(3, &orphan);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let process = format!("process {} uses it", scene.process(3));
    assert!(refused.err.contains(&process), "{refused:?}");
    scene.cluster.kill(3);
    let removed = scene.nearwire(3, &orphan);
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let status = scene.json(3, &["status"]);
    assert_eq!(
        status["regions"].as_array().map(Vec::len),
        Some(0),
        "{status:#}"
    );
    // Its votes are lost, and it knows.
    scene.start(3);
    let ended = scene.cluster.wait(3).expect("it was started");
    assert_eq!(ended.code(), Some(3), "{}", scene.cluster.log(3));
    let log = scene.cluster.log(3);
    assert!(log.contains("lost its memory"), "{log}");
}

#[test]
fn who_sits_on_the_interface_is_named() {
    let scene = Scene::new("seat", |_| {});
    scene.await_voting();
    scene.json(1, &["remove"]);
    let place = scene.site.replicas()[0].node.clone().expect("a namespace");
    let sitting = Ports::open_echo(&place).expect("the interface is free");
    let refused = scene.offload(1, &["install"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.err.contains("(echo) in native mode sits there"),
        "{refused:?}"
    );
    assert!(
        refused.err.contains("bpftool link detach id"),
        "{refused:?}"
    );
    let status = scene.json(1, &["status"]);
    assert_eq!(status["node"]["offload"]["state"], "refused", "{status:#}");
    let error = status["node"]["offload"]["error"]
        .as_str()
        .unwrap_or_default();
    assert!(
        error.contains("(echo) in native mode sits there"),
        "{status:#}"
    );
    drop(sitting);
    let installed = scene.json(1, &["install"]);
    assert_eq!(installed["offload"]["state"], "voting", "{installed:#}");
}
