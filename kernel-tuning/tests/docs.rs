//! `docs/tuning.md` and the profiles say the same.

use kernel_tuning::profile;
use kernel_tuning::setting::Role;

const DOCS: &str = include_str!("../../docs/tuning.md");

#[test]
fn every_setting_of_the_profiles_is_in_the_docs() {
    for setting in profile::settings(Role::Both) {
        let short = setting.name.rsplit('.').next().unwrap_or_default();
        let is_there = [&setting.name, short]
            .iter()
            .any(|name| DOCS.contains(&format!("`{name}`")));
        assert!(is_there, "{}", setting.name);
    }
}

#[test]
fn what_the_docs_keep_is_in_the_profiles_and_what_they_drop_is_not() {
    let mut rows = 0;
    for row in DOCS.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        // Copied, its values, the verdict, why.
        let [_, name, _, verdict, _, _] = cells.as_slice() else {
            continue;
        };
        let name = name.trim_matches('`');
        if !name.contains('.') || name.contains(' ') {
            continue;
        }
        let is_known = profile::setting(name).is_some();
        assert_eq!(is_known, *verdict != "dropped", "{name}: {verdict}");
        rows += 1;
    }
    assert_eq!(rows, 23);
}
