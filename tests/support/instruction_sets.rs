//! A test program run again with lesser instructions than this machine's, which is how those paths are tested at all.

use std::process::Command;

/// Runs all of this test program's other tests with AVX-512 alone, with AVX2 and with the portable code.
///
/// # Panics
/// When one of them fails.
pub fn tests_pass_with_lesser_ones(this_test: &str) {
    const ASKED: &str = "INCONTEXT_SIMD";
    if std::env::var_os(ASKED).is_some() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    for set in ["avx512", "avx2", "portable"] {
        let run = Command::new(&program).args(["--skip", this_test]).env(ASKED, set).output().unwrap();
        let words = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "with {set}:\n{words}");
        assert!(!words.contains(" 0 passed"), "with {set} nothing ran:\n{words}");
    }
}
