//! Image folders for tests.

use std::fs;
use std::path::Path;

/// Writes three grey 8x8 images for each of ten classes: `0/0.png` to `9/2.png`.
pub fn images(folder: &Path) {
    for class in 0..10 {
        let class = folder.join(class.to_string());
        fs::create_dir_all(&class).unwrap();
        for i in 0..3 {
            let picture = run_folder::picture::image(&[i as f32 / 3.0; 64], [1, 8, 8]);
            run_folder::picture::save(&picture, &class.join(format!("{i}.png"))).unwrap();
        }
    }
}
