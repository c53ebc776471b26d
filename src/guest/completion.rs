//! Scripts that teach shells to complete `guest`.

use crate::args::{GuestType, Shell};

/// Each command, and below it its subcommands or options.
const COMMANDS: &[(&str, &[&str])] = &[
    (
        "launch",
        &[
            "--cmdline-add",
            "--cpus",
            "--default-net",
            "--detach",
            "--forward",
            "--memory",
            "--virtio-balloon",
            "--virtio-console",
            "--virtio-gpu",
            "--virtio-mem",
            "--virtio-mem-block-size",
            "--virtio-mem-region-alignment",
            "--virtio-mem-region-size",
            "--virtio-rng",
            "--virtio-sound",
            "--virtio-sound-input",
            "--virtio-vsock",
            "--yes",
        ],
    ),
    ("attach", &["--serial"]),
    ("stop", &["--force"]),
    ("list", &[]),
    ("balloon", &["set", "stats"]),
    ("mem", &["request-plugged", "stats"]),
    ("socat", &["connect", "listen"]),
    ("vsock-perf", &["--repeats", "--transfer-size"]),
    ("image", &["build", "list", "remove", "--force", "--package", "--root-size", "--yes"]),
    ("logs", &[]),
    ("completion", &["bash", "zsh", "fish"]),
];

fn commands() -> String {
    let names: Vec<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
    names.join(" ")
}

fn guests() -> String {
    GuestType::ALL.map(GuestType::name).join(" ")
}

/// The script for a shell.
pub(crate) fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        // zsh runs bash's completion functions.
        Shell::Zsh => format!("autoload -U +X bashcompinit && bashcompinit\n{}", bash()),
        Shell::Fish => fish(),
    }
}

fn bash() -> String {
    let mut cases = String::new();
    for (name, words) in COMMANDS {
        cases.push_str(&format!("        {name}) words=\"{}\" ;;\n", words.join(" ")));
    }
    format!(
        "_guest() {{\n\
         \x20   local words current=\"${{COMP_WORDS[COMP_CWORD]}}\"\n\
         \x20   if [ \"$COMP_CWORD\" -eq 1 ]; then\n\
         \x20       words=\"{commands} --help --machine\"\n\
         \x20   else\n\
         \x20       case \"${{COMP_WORDS[1]}}\" in\n{cases}\x20       esac\n\
         \x20       words=\"$words {guests} --help --machine\"\n\
         \x20   fi\n\
         \x20   COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n\
         }}\n\
         complete -F _guest guest\n",
        commands = commands(),
        guests = guests(),
    )
}

fn fish() -> String {
    let mut script = format!(
        "complete -c guest -f\ncomplete -c guest -n __fish_use_subcommand -a '{}'\n",
        commands()
    );
    for (name, words) in COMMANDS {
        script.push_str(&format!(
            "complete -c guest -n '__fish_seen_subcommand_from {name}' -a '{} {}'\n",
            words.join(" "),
            guests()
        ));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn complete(line: &str) -> Vec<String> {
        let words: Vec<_> = line.split(' ').map(|word| format!("'{word}'")).collect();
        let driver = format!(
            "{}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_guest\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            script(Shell::Bash),
            words.join(" "),
            words.len() - 1
        );
        let output = Command::new("bash").args(["-c", &driver]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_commands_guests_and_options() {
        assert_eq!(complete("guest la"), ["launch"]);
        assert_eq!(complete("guest launch deb"), ["debian"]);
        assert_eq!(complete("guest launch --cp"), ["--cpus"]);
        assert_eq!(complete("guest balloon s"), ["set", "stats"]);
    }

    #[test]
    fn every_command_and_option_is_completed() {
        use crate::args::{Args, Command};
        use argh::{FromArgs as _, SubCommands as _};
        for command in Command::COMMANDS {
            let known = COMMANDS.iter().find(|(name, _)| *name == command.name);
            let (_, words) = known.unwrap_or_else(|| panic!("{} is not completed", command.name));
            let help = Args::from_args(&["guest"], &[command.name, "--help"]).unwrap_err().output;
            let options = help.lines().flat_map(str::split_whitespace);
            for option in options.filter(|word| word.starts_with("--")) {
                let option = option.trim_end_matches([',', ';', '.', ')', '`']);
                let everywhere = ["--help", "--machine"].contains(&option);
                let below = matches!(command.name, "image" | "balloon" | "mem" | "socat");
                assert!(
                    everywhere || below || words.contains(&option),
                    "{} {option}",
                    command.name
                );
            }
        }
    }

    #[test]
    fn every_shell_has_a_script() {
        assert!(script(Shell::Zsh).contains("bashcompinit"));
        assert!(script(Shell::Fish).contains("__fish_seen_subcommand_from launch"));
    }
}
