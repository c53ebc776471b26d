//! Ctrl-C, and the signals that mean the same, at every moment: the command ends with 130, the terminal is as it was, nothing stays.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;
use support::terminal::{ESCAPE, INTERRUPT, Terminal};
use support::{PROMPT, Session, User, every_process, wait_until};

#[test]
fn ctrl_c_at_any_moment_of_a_launch_leaves_the_terminal_as_it_was() {
    let user = User::with_guest();
    for moment in 0..12 {
        let mut terminal = Terminal::new(&user, &["launch", "debian"]);
        thread::sleep(Duration::from_millis(moment * moment));
        terminal.press(&[INTERRUPT]);
        // From some moment on the key is the guest's, as every other but one.
        wait_until("the key does something", || {
            terminal.child.try_wait().unwrap().is_some() || terminal.is_raw()
        });
        if terminal.child.try_wait().unwrap().is_none() {
            terminal.press(&[ESCAPE]);
            let code = terminal.end();
            assert!(matches!(code, 0 | 130), "after {} ms: {code}", moment * moment);
        } else {
            assert_eq!(terminal.end(), 130, "after {} ms", moment * moment);
        }
        assert!(terminal.is_restored());
        let _stopped = user.run(&["stop", "debian", "--force"]);
        assert!(!["Starting", "Running"].contains(&user.status().as_str()), "{}", user.status());
    }
}

#[test]
fn a_key_goes_to_the_guest_and_a_signal_to_the_command() {
    let user = User::with_guest();
    let mut terminal = Terminal::new(&user, &["launch", "debian"]);
    terminal.expect(PROMPT);
    assert!(terminal.is_raw());
    terminal.press(b"stty -isig -icanon; echo run $((6 * 7)); dd bs=1 count=1 | od -An -tx1\n");
    terminal.expect("run 42");
    terminal.press(&[INTERRUPT]);
    terminal.expect(" 03");
    for signal in ["-INT", "-TERM", "-HUP"] {
        let mut attached = Terminal::new(&user, &["attach", "debian"]);
        wait_until("it is attached", || attached.is_raw());
        user.kill(signal, attached.child.id());
        assert_eq!(attached.end(), 130, "{signal}");
        assert!(attached.is_restored(), "{signal}");
    }
    assert_eq!(user.status(), "Running");
    user.kill("-TERM", terminal.child.id());
    assert_eq!(terminal.end(), 130);
    assert!(terminal.is_restored());
    assert_eq!(user.status(), "Stopped");
}

#[test]
fn the_terminal_is_restored_when_the_guest_ends_or_its_vmm_dies() {
    let user = User::with_guest();
    let mut terminal = Terminal::new(&user, &["launch", "debian"]);
    terminal.expect(PROMPT);
    terminal.press(b"poweroff -f\n");
    assert_eq!(terminal.end(), 0);
    assert!(terminal.is_restored());
    let mut terminal = Terminal::new(&user, &["launch", "debian"]);
    terminal.expect(PROMPT);
    user.kill("-KILL", user.pid_of("vmm"));
    assert_eq!(terminal.end(), 1);
    assert!(terminal.is_restored());
}

/// A user whose `mmdebstrap` never comes to an end, which is what a slow network looks like.
#[test]
fn ctrl_c_during_an_image_build_leaves_neither_files_nor_processes() {
    let user = User::new();
    let tools = user.home.path().join("bin");
    fs::create_dir(&tools).unwrap();
    for tool in ["mmdebstrap", "mke2fs", "newuidmap"] {
        fs::write(tools.join(tool), "#!/bin/sh\necho I: working >&2\nsleep 86399\n").unwrap();
        fs::set_permissions(tools.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    for words in [&["image", "build", "debian"][..], &["launch", "debian"]] {
        let mut command = user.command(words);
        command.env("PATH", &path);
        let mut terminal = Terminal::with_command(&command);
        terminal.expect("working");
        terminal.press(&[INTERRUPT]);
        assert_eq!(terminal.end(), 130, "{words:?}");
        terminal.expect("nothing was left behind");
        assert!(terminal.is_restored());
        let marker = tools.display().to_string();
        wait_until("the tools have gone", || {
            !every_process().iter().any(|process| {
                process.words.iter().any(|word| word.contains(&marker) || word == "86399")
            })
        });
        let packages =
            fs::read_dir(user.home.path().join("data/guest/packages")).unwrap().flatten();
        let left: Vec<_> = packages.map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| name == ".lock"), "{left:?}");
    }
}

#[test]
fn a_script_that_hangs_up_leaves_the_guest_and_no_command() {
    let user = User::with_guest();
    let mut session = Session::new(&user, &["launch", "debian", "--detach"]);
    session.child.stdin.take();
    assert_eq!(session.end(), Some(0));
    let mut attached = Session::new(&user, &["attach", "debian"]);
    attached.expect(PROMPT);
    // Nobody reads any more: the next thing that the guest says ends the command.
    attached.type_line("echo more");
    drop(attached.output);
    wait_until("the command has ended", || attached.child.try_wait().unwrap().is_some());
    assert_eq!(user.status(), "Running");
}
