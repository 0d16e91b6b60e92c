//! Gives memory back that is not in use.

use std::ffi::c_int;
use std::ffi::c_void;

/// Gives back what the allocator holds free, and takes the program's code and constants out of this process's memory.
/// What of the code is needed next comes back from the page cache, a microsecond for 64 KiB.
///
/// A start, a burst of work, or the first client touches ten times what the daemon needs from then on; the kernel leaves
/// it mapped until memory runs short, and counts it as ours (RSS, PSS).
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the callback has the signature that is asked for and takes no data.
    unsafe {
        libc::dl_iterate_phdr(Some(release), std::ptr::null_mut());
    }
}

/// Releases the code of the first object, which is the program, and ends the iteration.
unsafe extern "C" fn release(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the loader gives a valid object.
    let info = unsafe { &*info };
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: there are `dlpi_phnum` headers.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        // What the loader has written to, by relocations, is in writable segments, also where it was protected later.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let page = rustix::param::page_size();
        let address = (info.dlpi_addr + header.p_vaddr) as usize;
        let (begin, end) = (address & !(page - 1), (address + header.p_memsz as usize).next_multiple_of(page));
        // SAFETY: nothing but the file's bytes was ever in these pages, and they are read from it again.
        unsafe {
            libc::madvise(std::ptr::without_provenance_mut(begin), end - begin, libc::MADV_DONTNEED);
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_goes_away_and_comes_back() {
        let mapped = || {
            let file = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = file.lines().find(|line| line.starts_with("RssFile:")).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        // Other tests of this process run at the same time, and need some of theirs at once.
        let before = mapped();
        let least = (0..20)
            .map(|_| {
                release_memory();
                mapped()
            })
            .min()
            .unwrap();
        assert!(least < before, "{least} KiB of {before} KiB");
        assert_eq!(format!("{}", [1, 2, 3].iter().sum::<i32>()), "6");
    }
}
