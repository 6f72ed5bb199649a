//! A multilayer perceptron on the flattened latent: the smallest network that trains.
//!
//!   h = silu(W_x x_t + time(t) + class(c)),  h <- h + MLP(h) twice,  prediction = W_out h

use framework::network::backbone::{Backbone, BackboneConfig, HookSites};
use framework::burn;
use framework::burn::module::Module;
use framework::burn::tensor::TensorData;
use framework::checkpoint::names::{OFFICIAL, OfficialName, OfficialNames, Layout};
use framework::nn::{Embedding, Linear, Mlp, TimestepEmbedder, silu};
use framework::prelude::*;
use framework::process::diffusion::VpConfig;
use framework::nn::parameters::Init;
use std::sync::Arc;

/// A multilayer perceptron that predicts the noise of a diffusion process on small square images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(crate = "framework::serde", deny_unknown_fields)]
#[schemars(crate = "framework::schemars")]
pub struct MyPlugin {
    /// Width of the hidden layers.
    #[schemars(range(min = 1, max = 16384))]
    pub hidden_size: usize,
    /// Side of the square latent, in positions.
    #[schemars(range(min = 1, max = 64))]
    pub input_size: usize,
    /// Channels of the latent.
    #[schemars(range(min = 1, max = 1024))]
    pub in_channels: usize,
    /// Number of classes. The embedding table has one extra row for the null class.
    #[schemars(range(min = 1, max = 100_000))]
    pub num_classes: usize,
}

framework::register!(backbone "my_plugin" => MyPlugin);

impl MyPlugin {
    fn numbers(&self) -> usize {
        self.input_size * self.input_size * self.in_channels
    }

    fn weights(&self) -> usize {
        let h = self.hidden_size;
        2 * self.numbers() * h + (256 + h) * h + 4 * h * h
    }
}

impl BackboneConfig for MyPlugin {
    fn accepts(&self) -> Accepts {
        Accepts {
            condition: ConditionShape::Class { count: self.num_classes },
            guidance_input: false,
            guidance_field: "",
            variance: false,
            hooks: HookSites::default(),
            cache: false,
        }
    }

    fn latent_shape(&self) -> LatentShape {
        LatentShape::values([self.input_size; 2], self.in_channels)
    }

    fn process(&self) -> Box<dyn Process> {
        Box::new(VpConfig::default().process())
    }

    fn init(&self, device: &Device) -> BoxBackbone {
        let (n, h) = (self.numbers(), self.hidden_size);
        BoxBackbone::new(Network {
            x_embedder: Linear::new(n, h, device),
            t_embedder: TimestepEmbedder::new(h, 256, None, device),
            y_embedder: Embedding::new(self.num_classes + 1, h, device),
            block_1: Mlp::new(h, h, device),
            block_2: Mlp::new(h, h, device),
            output: Linear::new(h, n, device),
            num_classes: self.num_classes,
        })
    }

    fn initializer(&self, path: &str, shape: &[usize]) -> Init {
        match path {
            _ if path.ends_with("bias") || path.starts_with("output") => Init::Zeros,
            _ if path.starts_with("y_embedder") => Init::Normal(1.0),
            _ => Init::XavierUniform { fan_in: shape[0], fan_out: shape[1] },
        }
    }

    fn formats(&self) -> Vec<OfficialNames> {
        vec![OfficialNames {
            format: OFFICIAL,
            folder: "",
            of: Arc::new(|path: &str| OfficialName { name: path.to_string(), layout: Layout::Same }),
            nesting: &[],
            ignored: &[],
            optional: &[],
        }]
    }

    fn t_of_native(&self, native: f64) -> f64 {
        VpConfig::default().process().t_of_index(native)
    }

    fn flops(&self) -> f64 {
        2.0 * self.weights() as f64
    }

    fn activations(&self) -> f64 {
        (2 * self.numbers() + 12 * self.hidden_size) as f64
    }
}

/// The layers and their weights.
#[derive(Module, Debug)]
struct Network {
    x_embedder: Linear,
    t_embedder: TimestepEmbedder,
    y_embedder: Embedding,
    block_1: Mlp,
    block_2: Mlp,
    output: Linear,
    #[module(skip)]
    num_classes: usize,
}

impl Backbone for Network {
    fn predict(&self, input: &Input, condition: &Condition, _: &Control) -> Tensor<3> {
        let (Input::Noisy { x_t, t }, Condition::Class(classes)) = (input, condition) else {
            panic!("the check phase passes only noisy latents and classes")
        };
        let [batch, positions, channels] = x_t.dims();
        let times: Vec<f64> = t.iter().map(|t| t * 1000.0 - 1.0).collect();
        let rows: Vec<i64> = classes.iter().map(|class| class.unwrap_or(self.num_classes) as i64).collect();
        let rows = Tensor::<2, Int>::from_data(TensorData::new(rows, [batch, 1]), &x_t.device());
        let class = self.y_embedder.forward(rows).reshape([batch as i64, -1]);
        let time = self.t_embedder.forward(&times, None, &x_t.device());
        let x = self.x_embedder.forward(x_t.clone().reshape([batch, positions * channels]));
        let h = silu(x + time + class);
        let block = |block: &Mlp, h: Tensor<2>| h.clone() + block.forward(h.unsqueeze_dim(1)).squeeze_dim(1);
        let h = block(&self.block_2, block(&self.block_1, h));
        self.output.forward(h).reshape([batch, positions, channels])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proofs::conformance;
    use framework::serde_json::json;

    /// The entry round-trips, gradients reach every parameter, samples are independent of their batch, and every
    /// setting has an effect.
    #[test]
    fn conforms() {
        let entry =
            json!({ "type": "my_plugin", "hidden_size": 8, "input_size": 2, "in_channels": 1, "num_classes": 3 });
        assert_eq!(conformance::backbone(&entry), Vec::<String>::new());
    }
}
