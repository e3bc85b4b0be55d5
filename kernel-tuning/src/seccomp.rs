//! The system calls of io_uring, added to the seccomp profile of a container runtime.
//!
//! Pure. The runtimes merge nothing: the profile that a container is given replaces the default, so the default, as a
//! file, is the base of what is made here. Docker and containerd took these calls out of theirs in 2023 (moby pull request
//! 46762, containerd pull request 9320), and Podman never had them. Invariant: the result allows what the base allows, and
//! three calls more.

use serde_json::{Value, json};

/// What io_uring needs (io_uring(7)).
pub const CALLS: [&str; 3] = ["io_uring_enter", "io_uring_register", "io_uring_setup"];

const COMMENT: &str = "Added by `throng-tune export seccomp`: io_uring. What is submitted to a ring does not pass this \
                       filter: sockets and files can be opened by it whatever other rules say of those calls.";

/// Why a text is no base.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// It is not JSON.
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is JSON, and no profile.
    #[error(
        "it has no list of rules (`syscalls`, as Docker's and Podman's default have, or `linux.seccomp.syscalls` of an OCI config.json)"
    )]
    NoRules,
}

/// The profile `base` with a rule that allows io_uring, and without rules that refuse it.
///
/// `base` is in the form of Docker and Podman, or the `config.json` of an OCI bundle, whose comments runtimes skip.
///
/// # Errors
/// When `base` is neither.
pub fn allow_io_uring(base: &str) -> Result<String, SeccompError> {
    let mut profile: Value = serde_json::from_str(base)?;
    let path = match profile.pointer("/linux/seccomp") {
        Some(_) => "/linux/seccomp/syscalls",
        None => "/syscalls",
    };
    let rules = profile.pointer_mut(path).and_then(Value::as_array_mut);
    let rules = rules.ok_or(SeccompError::NoRules)?;
    let allowed: Vec<&str> = CALLS
        .into_iter()
        .filter(|call| rules.iter().any(|rule| is_allowed_always(rule, call)))
        .collect();
    if allowed != CALLS {
        // Two rules for one call contradict each other.
        for rule in rules.iter_mut() {
            if let Some(names) = rule.get_mut("names").and_then(Value::as_array_mut) {
                names.retain(|name| !CALLS.iter().any(|call| name == call));
            }
        }
        rules.retain(|rule| {
            rule["names"]
                .as_array()
                .is_none_or(|names| !names.is_empty())
        });
        rules.push(json!({"names": CALLS, "action": "SCMP_ACT_ALLOW", "comment": COMMENT}));
    }
    Ok(serde_json::to_string_pretty(&profile)? + "\n")
}

fn is_allowed_always(rule: &Value, call: &str) -> bool {
    let is_empty = |key: &str| match &rule[key] {
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => true,
    };
    let names = rule["names"].as_array().into_iter().flatten();
    rule["action"] == "SCMP_ACT_ALLOW"
        && ["args", "includes", "excludes"].into_iter().all(is_empty)
        && names.into_iter().any(|name| name == call)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn exported(base: &Value) -> Value {
        serde_json::from_str(&allow_io_uring(&base.to_string()).unwrap()).unwrap()
    }

    fn rule() -> Value {
        json!({"names": CALLS, "action": "SCMP_ACT_ALLOW", "comment": COMMENT})
    }

    #[test]
    fn three_calls_are_added_and_nothing_else_changes() {
        let base = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": null}],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2_114_060_288_u64, "op": "SCMP_CMP_MASKED_EQ"}]},
            ],
        });
        let mut expected = base.clone();
        expected["syscalls"].as_array_mut().unwrap().push(rule());
        assert_eq!(exported(&base), expected);
        // And not twice.
        assert_eq!(exported(&expected), expected);
    }

    #[test]
    fn a_rule_that_refuses_them_gives_way() {
        let base = json!({"syscalls": [
            {"names": ["io_uring_setup", "nice"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["io_uring_setup"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        ]});
        let expected = json!({"syscalls": [
            {"names": ["nice"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            rule(),
        ]});
        assert_eq!(exported(&base), expected);
    }

    #[test]
    fn the_config_of_a_bundle_is_a_base_too() {
        let base = json!({"process": {}, "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}}});
        assert_eq!(
            exported(&base)["linux"]["seccomp"]["syscalls"],
            json!([rule()])
        );
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for (text, words) in [
            ("{", "not JSON"),
            ("[]", "no list of rules"),
            ("{\"syscalls\": 1}", "no list of rules"),
        ] {
            let error = allow_io_uring(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
