//! Adding and removing addresses, in a network namespace of the test's own.

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// Does `work` in a network namespace of its own, on a thread that ends with it; where this user may make none, says so
/// past the capture of test output.
fn in_namespace(work: impl FnOnce() + Send + 'static) {
    let test = std::thread::current()
        .name()
        .unwrap_or("addresses")
        .to_owned();
    let skip = move |why: &str| {
        let line = format!("\nSKIPPED {test}: {why}\n");
        io::stderr().write_all(line.as_bytes()).unwrap();
    };
    if Command::new("ip").arg("-V").output().is_err() {
        return skip("the program ip is not there (iproute2)");
    }
    let thread = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            ip_command("link set lo up");
            work();
        }
        Err(errno) => skip(&format!(
            "no network namespace can be made ({errno:?}): run it as root"
        )),
    });
    thread.join().unwrap();
}

fn ip_command(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

fn specs(texts: &[&str]) -> Vec<Spec> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn binds(address: &str) -> bool {
    TcpListener::bind((address, 0)).is_ok()
}

#[test]
fn a_whole_network_is_local_until_it_is_removed_and_both_can_be_repeated() {
    in_namespace(|| {
        let wanted = plan(&specs(&["10.9.0.0/16", "10.9.0.0/16"]), None).unwrap();
        assert!(!binds("10.9.200.7"));
        assert_eq!(add(&wanted).unwrap(), wanted);
        assert!(binds("10.9.200.7"));
        assert_eq!(add(&wanted).unwrap(), []);
        assert_eq!(list().unwrap(), wanted);
        assert_eq!(remove(&list().unwrap()).unwrap(), wanted);
        assert!(!binds("10.9.200.7"));
        assert_eq!(remove(&wanted).unwrap(), []);
        assert_eq!(list().unwrap(), []);
    });
}

#[test]
fn an_interface_gets_single_addresses_and_keeps_what_is_not_ours() {
    in_namespace(|| {
        ip_command("addr add 10.5.0.1/32 dev lo");
        ip_command("route add local 10.6.0.0/24 dev lo");
        let wanted = plan(&specs(&["10.5.0.10-10.5.0.12", "fd00::5"]), Some("lo")).unwrap();
        assert_eq!(add(&wanted).unwrap().len(), 4);
        assert!(binds("10.5.0.12") && binds("fd00::5") && !binds("10.5.0.13"));
        let theirs = plan(&specs(&["10.5.0.1"]), Some("lo")).unwrap();
        let error = add(&theirs).unwrap_err().to_string();
        assert!(error.contains("not added by throng-tune"), "{error}");
        assert_eq!(remove(&theirs).unwrap(), []);
        let theirs = plan(&specs(&["10.6.0.0/24"]), None).unwrap();
        assert_eq!(remove(&theirs).unwrap(), []);
        remove(&list().unwrap()).unwrap();
        assert!(binds("10.5.0.1") && binds("10.6.0.9") && !binds("10.5.0.12"));
    });
}

#[test]
fn what_fails_half_way_leaves_nothing_behind() {
    in_namespace(|| {
        ip_command("addr add 10.5.0.3/32 dev lo");
        let wanted = plan(&specs(&["10.5.0.1-10.5.0.5"]), Some("lo")).unwrap();
        add(&wanted).unwrap_err();
        assert_eq!(list().unwrap(), []);
        assert!(!binds("10.5.0.1") && binds("10.5.0.3"));
    });
}

#[test]
fn a_network_that_holds_the_hosts_way_out_is_refused() {
    in_namespace(|| {
        ip_command("link add here type veth peer name there");
        ip_command("addr add 10.5.0.1/24 dev here");
        ip_command("link set here up");
        ip_command("route add default via 10.5.0.2");
        let refused = |text| plan(&specs(&[text]), None).unwrap_err().to_string();
        ip_command("route add 10.6.1.0/24 via 10.5.0.3");
        assert!(refused("10.5.0.0/30").contains("10.5.0.2, a gateway"));
        assert!(refused("10.6.0.0/16").contains("10.6.1.0/24"));
        plan(&specs(&["10.5.0.128/25"]), None).unwrap();
    });
}

#[test]
fn an_ordinary_user_may_list_and_an_unknown_interface_is_named_with_those_there_are() {
    list().unwrap();
    let error = plan(&specs(&["10.9.0.1"]), Some("no-such"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no-such") && error.contains("lo"), "{error}");
    let error = failed("add it", Errno::EPERM.into()).to_string();
    assert!(error.contains("root"), "{error}");
}
