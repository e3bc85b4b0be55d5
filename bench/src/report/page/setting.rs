//! What a page says of the machine in a line or two where the report has a list. Pure.

use kernel_tuning::host::Environment;

use crate::report::format::of_many;

/// What not every host tells, name and value.
pub(super) fn where_known(environment: &Environment) -> Vec<(&'static str, String)> {
    let virtual_machine = environment.is_virtual.map(|is| match is {
        true => "yes".to_owned(),
        false => "no".to_owned(),
    });
    let all = [
        ("virtual machine", virtual_machine),
        ("CPU governor", environment.cpu_governor.clone()),
        ("CPU mitigations", mitigations(environment)),
        ("transparent huge pages", environment.huge_pages.clone()),
    ];
    let known = all
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    known.collect()
}

/// What the kernel does about the CPU's weaknesses: those open, those worked around, and how many there are not.
fn mitigations(environment: &Environment) -> Option<String> {
    let asked = environment.mitigations_asked.as_ref();
    let asked = asked.map(|asked| format!("asked for with mitigations={asked}"));
    let all = || environment.mitigations.iter();
    let named = |state| {
        let names: Vec<&str> = all()
            .filter(|(_, said)| State::of(said) == state)
            .map(|(name, _)| name.as_str())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let unaffected = all().filter(|(_, said)| State::of(said) == State::Unaffected);
    let unaffected = unaffected.count() as u64;
    let said = [
        named(State::Vulnerable).map(|names| format!("vulnerable: {names}")),
        named(State::Mitigated).map(|names| format!("mitigated: {names}")),
        named(State::Unknown).map(|names| format!("unknown: {names}")),
        (unaffected > 0).then(|| format!("not affected by {}", of_many(unaffected, "other"))),
        asked,
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join("; "))
}

/// What a line of `/sys/devices/system/cpu/vulnerabilities` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unaffected,
    Mitigated,
    Vulnerable,
    Unknown,
}

impl State {
    /// By the words that the kernel's documentation has (admin-guide/hw-vuln); what is known of KVM alone begins so.
    fn of(said: &str) -> Self {
        let said = said.strip_prefix("KVM: ").unwrap_or(said);
        if said.starts_with("Not affected") {
            Self::Unaffected
        } else if said.starts_with("Mitigation") {
            Self::Mitigated
        } else if said.starts_with("Vulnerable") || said.starts_with("Processor vulnerable") {
            Self::Vulnerable
        } else {
            Self::Unknown
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::run::tests::about;

    #[test]
    fn what_is_open_comes_first_and_what_does_not_concern_is_counted() {
        let mut environment = about("floor").environment;
        let lines = [
            ("itlb_multihit", "KVM: Mitigation: VMX disabled"),
            ("l1tf", "Not affected"),
            (
                "mds",
                "Vulnerable: Clear CPU buffers attempted, no microcode",
            ),
            ("meltdown", "Not affected"),
            (
                "retbleed",
                "Mitigation: untrained return thunk; SMT vulnerable",
            ),
            ("srbds", "Unknown: Dependent on hypervisor status"),
        ];
        environment.mitigations = lines
            .map(|(name, said)| (name.to_owned(), said.to_owned()))
            .into();
        environment.mitigations_asked = Some("auto".to_owned());
        assert_eq!(
            mitigations(&environment).unwrap(),
            "vulnerable: mds; mitigated: itlb_multihit, retbleed; unknown: srbds; not affected by 2 others; \
             asked for with mitigations=auto"
        );
        environment.mitigations.clear();
        environment.mitigations_asked = None;
        environment.is_virtual = None;
        environment.cpu_governor = Some("powersave".to_owned());
        environment.huge_pages = None;
        assert_eq!(
            where_known(&environment),
            [("CPU governor", "powersave".to_owned())]
        );
    }
}
