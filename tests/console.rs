//! The virtio console: a shell on it, and more bytes than anything holds at once, both ways.

use enclosed_guest::{EnclosedGuest, GuestConsole, GuestKernel, RunningGuest, environment};
use fidl_fuchsia_virtualization::GuestConfig;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};

async fn start(words: &[&str]) -> (EnclosedGuest, RunningGuest) {
    let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Linux);
    let config = GuestConfig {
        virtio_console: Some(true),
        cmdline_add: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        ..Default::default()
    };
    let guest = enclosed.launch(config).await.unwrap();
    (enclosed, guest)
}

#[fasync::run_singlethreaded(test)]
async fn a_shell_on_the_console() {
    let (enclosed, guest) = start(&["guest.console=hvc0"]).await;
    let socket = guest.guest.get_console().await.unwrap().unwrap();
    let mut console = GuestConsole::on(socket, GuestKernel::Linux);
    console.wait_for_shell().await;
    for index in 0..100 {
        assert_eq!(console.run(&format!("echo test{index}")).await, format!("test{index}\n"));
    }
    let long: String = (0..3800).map(|index| char::from(b'a' + (index % 26) as u8)).collect();
    assert_eq!(console.run(&format!("echo {long}")).await, format!("{long}\n"));
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn nothing_is_lost_or_added_while_one_side_waits() {
    let (enclosed, mut guest) = start(&[]).await;
    guest.console.wait_for_shell().await;
    let socket = guest.guest.get_console().await.unwrap().unwrap();
    let mut port = fasync::Socket::from_socket(socket);

    // Held open, because a terminal forgets its settings when nobody has it.
    guest.console.run("exec 9<>/dev/hvc0; stty raw -echo <&9").await;
    // From the guest, with nobody reading at first. Linux waits for its console with interrupts off, so all of the
    // guest does.
    guest
        .console
        .run("seq 1 200000 > /tmp/numbers; (sleep 0.1; cat /tmp/numbers > /dev/hvc0) &")
        .await;
    fasync::Timer::new(zx::Time::after(zx::Duration::from_millis(500))).await;
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let mut read = vec![0; expected.len()];
    port.read_exact(&mut read).await.unwrap();
    if let Some(at) = (0..read.len()).find(|at| read[*at] != expected.as_bytes()[*at]) {
        let part = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[at.saturating_sub(20)..][..40]).into_owned()
        };
        panic!("byte {at}: {:?} and not {:?}", part(&read), part(expected.as_bytes()));
    }

    // To the guest, which takes it slowly.
    let command = format!("(head -c {} /dev/hvc0 | sha256sum > /tmp/got) &", expected.len());
    guest.console.run(&command).await;
    port.write_all(expected.as_bytes()).await.unwrap();
    let got = guest.console.run("while [ ! -s /tmp/got ]; do sleep 0.05; done; cat /tmp/got").await;
    assert_eq!(got, guest.console.run("sha256sum < /tmp/numbers").await);
    enclosed.destroy().await;
}
