//! Lock modes: which may be held together (the VAX/VMS matrix, as in Lustre), and which stands in for which.
//!
//! ```text
//!        NL  CR  CW  PR  PW  EX
//!   NL    ●   ●   ●   ●   ●   ●
//!   CR    ●   ●   ●   ●   ●
//!   CW    ●   ●   ●
//!   PR    ●   ●       ●
//!   PW    ●   ●
//!   EX    ●
//! ```

use nacre_wire::ldlm::Mode;

/// Whether two parties may hold these modes on the same thing at once.
pub fn compatible(a: Mode, b: Mode) -> bool {
    let with_a: &[Mode] = match a {
        Mode::Nl => &[Mode::Nl, Mode::Cr, Mode::Cw, Mode::Pr, Mode::Pw, Mode::Ex],
        Mode::Cr => &[Mode::Nl, Mode::Cr, Mode::Cw, Mode::Pr, Mode::Pw],
        Mode::Cw => &[Mode::Nl, Mode::Cr, Mode::Cw],
        Mode::Pr => &[Mode::Nl, Mode::Cr, Mode::Pr],
        Mode::Pw => &[Mode::Nl, Mode::Cr],
        Mode::Ex => &[Mode::Nl],
    };
    with_a.contains(&b)
}

/// Whether who holds `held` may do what `wanted` allows: everything that conflicts with `wanted` conflicts with `held` too.
pub fn covers(held: Mode, wanted: Mode) -> bool {
    match wanted {
        Mode::Nl => true,
        Mode::Cr => held != Mode::Nl,
        Mode::Cw => matches!(held, Mode::Cw | Mode::Pw | Mode::Ex),
        Mode::Pr => matches!(held, Mode::Pr | Mode::Pw | Mode::Ex),
        Mode::Pw => matches!(held, Mode::Pw | Mode::Ex),
        Mode::Ex => held == Mode::Ex,
    }
}

/// Whether a holder may have changes of its own that nobody else has seen.
pub fn writes(mode: Mode) -> bool {
    matches!(mode, Mode::Cw | Mode::Pw | Mode::Ex)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Mode; 6] = [Mode::Nl, Mode::Cr, Mode::Cw, Mode::Pr, Mode::Pw, Mode::Ex];

    #[test]
    fn matrix_is_the_one_drawn_and_symmetric() {
        let rows = ALL.map(|a| ALL.iter().map(|&b| if compatible(a, b) { '1' } else { '0' }).collect::<String>());
        assert_eq!(rows, ["111111", "111110", "111000", "110100", "110000", "100000"]);
        for a in ALL {
            for b in ALL {
                assert_eq!(compatible(a, b), compatible(b, a), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn covering_means_conflicting_with_all_that_the_other_conflicts_with() {
        for held in ALL {
            for wanted in ALL {
                let stronger = ALL.iter().all(|&third| compatible(wanted, third) || !compatible(held, third));
                assert_eq!(covers(held, wanted), stronger, "{held:?} {wanted:?}");
            }
        }
    }
}
