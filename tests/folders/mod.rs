//! Folders of images for tests.

use std::fs;
use std::path::Path;

/// Three grey pictures of 8x8 pixels for each of ten classes: `0/0.png` to `9/2.png`.
pub fn images(folder: &Path) {
    for class in 0..10 {
        let class = folder.join(class.to_string());
        fs::create_dir_all(&class).unwrap();
        for i in 0..3 {
            let picture = framework::picture::image(&[i as f32 / 3.0; 64], [1, 8, 8]);
            framework::picture::save(&picture, &class.join(format!("{i}.png"))).unwrap();
        }
    }
}
