//! The command `throng-bench manual`, for packages: man pages and shell completions of all programs. Owns what it writes.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Refusal, bad_usage};

#[derive(Debug, Args)]
pub(super) struct ManualArgs {
    /// Where man1 and completions are made
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Writes them.
pub(super) fn run(args: &ManualArgs) -> Result<bool, Refusal> {
    let directory = &args.directory;
    if directory.is_file() {
        return Err(bad_usage(format!(
            "{} is a file; name a directory",
            directory.display()
        )));
    }
    let failed = |cause: io::Error| {
        let reason = format!("cannot write below {}: {cause}", directory.display());
        (reason, 1)
    };
    write(directory).map(|()| true).map_err(failed)
}

fn write(directory: &Path) -> io::Result<()> {
    let (pages, completions) = (directory.join("man1"), directory.join("completions"));
    std::fs::create_dir_all(&pages)?;
    std::fs::create_dir_all(&completions)?;
    let programs = [
        server::config::Flags::command(),
        client::config::command(),
        kernel_tuning::cli::command(),
        Cli::command(),
    ];
    for program in programs {
        let name = program.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            clap_complete::generate_to(shell, &mut program.clone(), &name, &completions)?;
        }
        clap_mangen::generate_to(program, &pages)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_its_pages_and_its_completions() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        for (page, said) in [
            ("throng-server.1", "backlog"),
            ("throng-client.1", "Exit code"),
            ("throng-tune.1", "apply"),
            ("throng-tune-check.1", "connections"),
            ("throng-bench.1", "merge"),
            ("throng-bench-merge.1", "partial"),
        ] {
            assert!(read(&format!("man1/{page}")).contains(said), "{page}");
        }
        for program in [
            "throng-server",
            "throng-client",
            "throng-tune",
            "throng-bench",
        ] {
            assert!(read(&format!("completions/{program}.bash")).contains(program));
            assert!(read(&format!("completions/_{program}")).contains(program));
        }
    }
}
