//! A report of every command, recorded from real runs; what the servers and clients said is cut to what the pages show.

/// The command, and its report as JSON.
pub const RECORDED: [(&str, &str); 12] = [
    ("compare", include_str!("../../testdata/report.json")),
    ("hold", include_str!("../../testdata/hold.json")),
    ("canary", include_str!("../../testdata/canary.json")),
    ("memory", include_str!("../../testdata/memory.json")),
    ("floor", include_str!("../../testdata/floor.json")),
    ("tail", include_str!("../../testdata/tail.json")),
    ("churn", include_str!("../../testdata/churn.json")),
    ("heartbeat", include_str!("../../testdata/heartbeat.json")),
    ("faults", include_str!("../../testdata/faults.json")),
    ("selfcheck", include_str!("../../testdata/selfcheck.json")),
    ("merge", include_str!("../../testdata/merge.json")),
    ("remote", include_str!("../../testdata/remote.json")),
];
