use incontext::experiments::*;
use incontext::progress::Lines;
use std::time::Duration;
fn main() {
    let l = Lines::every(Duration::from_secs(20));
    for id in std::env::args().skip(1) {
        let s = Settings {
            checkpoints: "/work/main/checkpoints".into(),
            work: "/work/main/.lab/training".into(),
            observer: &l,
            quick: std::env::var("QUICK").is_ok(),
            ..Default::default()
        };
        if id.starts_with("pgd.") {
            let e = select(&[id.clone()]).unwrap().remove(0);
            let t = std::time::Instant::now();
            match (e.run)(&s) {
                Ok(r) => {
                    println!("{id} {:?}", t.elapsed());
                    for c in r.claims.iter() {
                        println!("  {} {} {} {}", c.verdict(), c.id, c.measured_text(), c.bound_text());
                    }
                    println!("{}", r.config);
                    std::fs::write(format!("/tmp/{id}.svg"), r.figure.with_claims(r.claims).to_svg().unwrap()).unwrap();
                }
                Err(e) => println!("{id}: {e}"),
            }
            continue;
        }
        let r = recipe(&id).unwrap();
        println!("{:?}", (r.run)(&s, &TrainOptions { resume: true, seed: None, out: None }));
    }
}
