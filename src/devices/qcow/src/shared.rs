//! An image that several threads use at once.
//!
//! What the tables in memory already say goes on side by side: reads, and writes to clusters that are there. Whatever
//! changes tables, or has to read them, has the image for itself: it allocates or frees clusters, whose readers and writers
//! are done by then. A flush that has only data to wait for keeps nobody.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::Error;
use crate::image::Image;

/// An [`Image`] behind a lock that most requests share.
#[derive(Debug)]
pub struct SharedImage {
    image: RwLock<Image>,
    size: u64,
}

impl SharedImage {
    /// Takes an image.
    pub fn new(image: Image) -> Self {
        let size = image.size();
        Self { image: RwLock::new(image), size }
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn shared(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Image> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Image::read_at`].
    ///
    /// # Errors
    /// The same.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut done = self.shared().read_cached(buf, offset)?;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            // The table that is missing comes into memory by this; others are there or come alike.
            done += self.exclusive().read_some(rest, offset + done as u64)?;
            if let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
                done += self.shared().read_cached(rest, offset + done as u64)?;
            }
        }
        Ok(())
    }

    /// As [`Image::write_at`].
    ///
    /// # Errors
    /// The same.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        let mut done = self.shared().write_cached(buf, offset)?;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let mut image = self.exclusive();
            // What one thread finds unallocated another may have allocated by now: this looks again.
            image.check_writable()?;
            done += image.write_some(rest, offset + done as u64)?;
            drop(image);
            if let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
                done += self.shared().write_cached(rest, offset + done as u64)?;
            }
        }
        Ok(())
    }

    /// As [`Image::write_zeroes`].
    ///
    /// # Errors
    /// The same.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.exclusive().write_zeroes(offset, len, unmap)
    }

    /// As [`Image::discard`].
    ///
    /// # Errors
    /// The same.
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.exclusive().discard(offset, len)
    }

    /// As [`Image::flush`]: covers every write that returned before.
    ///
    /// # Errors
    /// The same.
    pub fn flush(&self) -> Result<(), Error> {
        let begun = self.shared().begin_sync()?;
        let Some(sync) = begun else { return self.exclusive().flush() };
        let Some(file) = &sync.file else { return Ok(()) };
        // Without the lock: others go on while the disk works.
        let result = file.sync();
        self.shared().end_sync(&sync, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::NoBacking;
    use crate::create::CreateOptions;
    use crate::file::{BlockFile, MemoryFile};
    use crate::image::Mode;
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    /// A file whose reads of data, or syncs, stop until the test lets them go on.
    struct Gated {
        file: MemoryFile,
        gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
        syncs: AtomicUsize,
    }

    impl Gated {
        fn pass(&self) {
            let gate = self.gate.lock().unwrap().take();
            if let Some((arrived, go_on)) = gate {
                arrived.send(()).unwrap();
                go_on.recv().unwrap();
            }
        }

        /// The next to pass tells by the first, and waits for the second.
        fn close(&self) -> (Receiver<()>, Sender<()>) {
            let (arrived, told) = channel();
            let (open, go_on) = channel();
            *self.gate.lock().unwrap() = Some((arrived, go_on));
            (told, open)
        }
    }

    impl BlockFile for Gated {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.pass();
            self.file.read_at(buf, offset)
        }

        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.file.write_at(buf, offset)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }

        fn sync(&self) -> io::Result<()> {
            self.pass();
            self.syncs.fetch_add(1, Ordering::SeqCst);
            self.file.sync()
        }
    }

    const CLUSTER: u64 = 1 << 16;

    /// An image whose first two clusters are allocated, and known.
    fn image() -> (Arc<Gated>, SharedImage) {
        let file = MemoryFile::default();
        let options = CreateOptions { size: 1 << 24, cluster_bits: 16, backing: None };
        Image::create(&file, &options).unwrap();
        let file = Arc::new(Gated { file, gate: Mutex::default(), syncs: AtomicUsize::new(0) });
        let image = Image::open(file.clone(), Mode::ReadWrite, &mut NoBacking).unwrap();
        let image = SharedImage::new(image);
        image.write_at(&[1; 2 * CLUSTER as usize], 0).unwrap();
        image.flush().unwrap();
        (file, image)
    }

    #[test]
    fn a_slow_read_keeps_no_other_reader_and_no_writer_in_place() {
        let (file, image) = image();
        let (arrived, open) = file.close();
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| image.read_at(&mut [0; 512], 0));
            arrived.recv().unwrap();
            let mut read = [0; 512];
            image.write_at(&[7; 512], CLUSTER).unwrap();
            image.read_at(&mut read, CLUSTER).unwrap();
            assert_eq!(read, [7; 512]);
            image.flush().unwrap();
            open.send(()).unwrap();
            slow.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_sync_keeps_nobody_and_another_flush_does_not_rely_on_it() {
        let (file, image) = image();
        let syncs = || file.syncs.load(Ordering::SeqCst);
        let before = syncs();
        image.flush().unwrap();
        assert_eq!(syncs(), before, "nothing to sync");
        image.write_at(&[2; 512], 0).unwrap();
        let (arrived, open) = file.close();
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| image.flush());
            arrived.recv().unwrap();
            // What was written before a flush is not lasting because another flush of it has begun.
            image.flush().unwrap();
            assert_eq!(syncs(), before + 1);
            image.write_at(&[3; 512], 512).unwrap();
            // Allocates, which takes the image alone.
            image.write_at(&[4; 512], 5 * CLUSTER).unwrap();
            open.send(()).unwrap();
            slow.join().unwrap().unwrap();
        });
        // Those two writes came after that flush began.
        let before = syncs();
        image.flush().unwrap();
        assert!(syncs() > before);
        let before = syncs();
        image.flush().unwrap();
        assert_eq!(syncs(), before);
    }
}
