//! The helpers against real servers.

use std::sync::Arc;

use fidl::endpoints::{ServerEnd, create_proxy};
use fidl_fuchsia_io as fio;
use fuchsia_fs::{directory, file};
use fuchsia_zircon::Status;
use vfs::directory::Simple;
use vfs::execution_scope::ExecutionScope;

fn serve(root: Arc<Simple>) -> fio::DirectoryProxy {
    let (proxy, server): (_, ServerEnd<fio::DirectoryMarker>) = create_proxy();
    vfs::directory::serve(root, &ExecutionScope::new(), fio::RW_STAR_DIR, server);
    proxy
}

fn tree() -> (Arc<Simple>, Arc<vfs::file::Memory>) {
    let root = vfs::directory::simple();
    let data = vfs::directory::simple();
    let long: Vec<u8> = (0..100_000u32).map(|number| (number % 253) as u8).collect();
    let writable = vfs::file::read_write(b"old".to_vec(), 1 << 20);
    let entries = [
        ("guest.cfg", vfs::file::read_only(b"{}".to_vec())),
        ("long", vfs::file::read_only(long)),
        ("writable", vfs::file::entry(writable.clone(), 5)),
    ];
    for (name, entry) in entries {
        data.add_entry(name, entry).expect("the name is free");
    }
    root.add_entry("data", data).expect("the name is free");
    (root, writable)
}

#[fuchsia_async::run_singlethreaded(test)]
async fn files_are_read_whole() {
    let root = serve(tree().0);
    assert_eq!(
        directory::read_file_to_string(&root, "data/guest.cfg").await.expect("it is there"),
        "{}"
    );
    let long = directory::read_file(&root, "data/long").await.expect("it is there");
    assert_eq!(long.len(), 100_000);
    assert!(long.iter().enumerate().all(|(index, byte)| index as u32 % 253 == u32::from(*byte)));
    let missing = directory::read_file(&root, "data/missing").await.expect_err("it is not there");
    assert!(missing.is_not_found_error(), "{missing}");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn what_cannot_be_opened_says_why() {
    let root = serve(tree().0);
    let flags = fio::PERM_READABLE;
    let error = directory::open_directory(&root, "nowhere", flags).await.expect_err("not there");
    assert!(error.is_not_found_error(), "{error}");
    let error = directory::open_directory(&root, "data/long", flags).await.expect_err("a file");
    assert!(matches!(error, fuchsia_fs::node::OpenError::OpenError(Status::NOT_DIR)), "{error}");
    let error = directory::open_file(&root, "data", flags).await.expect_err("a directory");
    assert!(matches!(error, fuchsia_fs::node::OpenError::OpenError(Status::NOT_FILE)), "{error}");
    let gone = create_proxy::<fio::DirectoryMarker>().0;
    assert!(directory::open_directory(&gone, "data", flags).await.is_err());
}

#[fuchsia_async::run_singlethreaded(test)]
async fn directories_are_listed() {
    let root = serve(tree().0);
    let data =
        directory::open_directory(&root, "data", fio::PERM_READABLE).await.expect("a directory");
    for _ in 0..2 {
        let entries = directory::readdir(&data).await.expect("it can be listed");
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["guest.cfg", "long", "writable"]);
        assert!(entries.iter().all(|entry| entry.kind == directory::DirentKind::File));
    }
    directory::close(data).await.expect("it closes");
}

#[fuchsia_async::run_singlethreaded(test)]
async fn files_are_written() {
    let (root, writable) = tree();
    let root = serve(root);
    let flags = fio::PERM_READABLE | fio::PERM_WRITABLE | fio::Flags::FILE_TRUNCATE;
    let open =
        directory::open_file(&root, "data/writable", flags).await.expect("it can be written");
    let text = vec![b'x'; 20_000];
    file::write(&open, &text).await.expect("it is written");
    assert_eq!(writable.contents(), text);
    assert_eq!(file::read(&open).await.expect("it is read").len(), text.len());
    file::close(open).await.expect("it closes");
    let clone = directory::clone(&root).expect("it can be cloned");
    let read_only = directory::open_file(&clone, "data/guest.cfg", flags).await;
    assert!(read_only.is_err());
}
